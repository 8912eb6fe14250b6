"""Pages: one self-contained HTML document per run."""

from mediant.report.page import Page, Section, Strip, Table, Token, render

__all__ = ["Page", "Section", "Strip", "Table", "Token", "render"]
