"""From a Volume to Findings, and from an archive to a folder of results."""
