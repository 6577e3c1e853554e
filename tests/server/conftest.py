# SPDX-License-Identifier: GPL-3.0-or-later
"""Before torch is imported: its threads sleep while they wait, as in the worker."""

from __future__ import annotations

from onmodel.models import libraries

libraries.prepare()
