"""Logs and tables of any format -> canonical events and entities, and what had to be left out."""
