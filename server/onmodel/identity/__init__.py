# SPDX-License-Identifier: GPL-3.0-or-later
"""Is this head that character? Embedders, scores against references, calibration, statistics.

Nothing here is imported by the API; torch, dlib and insightface are imported on first use.
"""
