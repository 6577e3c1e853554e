# SPDX-License-Identifier: GPL-3.0-or-later
"""Custom properties by which rooms of the add-on know each other's things in a file.

Names are the artist's to change, and Blender adds .001 to them; these stay.
"""

planes_collection = "onmodel_planes"
"""On the collection of a scene's image planes: it is never captured."""
