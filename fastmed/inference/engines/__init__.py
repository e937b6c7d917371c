"""Engines: what runs a bundle's network, behind one protocol."""

from fastmed.inference.engines.kinds import NAMES, present, survey
from fastmed.inference.engines.opening import open_engine
from fastmed.inference.engines.protocol import Engine
from fastmed.inference.engines.pytorch import NetworkEngine

__all__ = ["NAMES", "Engine", "NetworkEngine", "open_engine", "present", "survey"]
