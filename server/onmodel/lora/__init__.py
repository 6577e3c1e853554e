# SPDX-License-Identifier: GPL-3.0-or-later
"""LoRA files: their layouts, their metadata, and how they are written."""
