# SPDX-License-Identifier: GPL-3.0-or-later
"""Training LoRAs of characters: plans, data sets, preflight, engine. Knows nothing of HTTP."""
