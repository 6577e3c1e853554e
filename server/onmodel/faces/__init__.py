# SPDX-License-Identifier: GPL-3.0-or-later
"""The face pass: which heads of a drawing are drawn again, larger, and put back."""
