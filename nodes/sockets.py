"""The pack's own sockets, which wires of no other kind fit."""

from __future__ import annotations

from comfy_api.latest import io

DomainIO = io.Custom("E4T_DOMAIN")
SettingsIO = io.Custom("E4T_SETTINGS")
ConceptIO = io.Custom("E4T_CONCEPT")
