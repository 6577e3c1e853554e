# SPDX-License-Identifier: GPL-3.0-or-later
"""Results into the scene: image planes on the shot cameras, takes, VSE strips."""
