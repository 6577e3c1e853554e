# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's version; pyproject.toml says the same (tests/test_contract.py)."""

version = "0.1.0"
