"""What an archive run leaves behind, for tests that look at it."""

TABLES = {"findings.csv", "manifest.json", "report.html", "journal.sqlite"}
SCAN_FILES = {"labels.nii.gz", "findings.json", "preview.png", "thumb.jpg"}


def verdicts(run) -> dict[str, str]:
    return {row.source: row.verdict for row in run.rows}


def files_below(folder) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
