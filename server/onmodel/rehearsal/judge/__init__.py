# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge: finds a figure's parts in a picture, and reads colours and the set off it.

It exists to measure the rehearsal model's drawings with something that was not asked to draw them.
What it is worth on renders of people it never saw is printed beside every figure that rests on it.
"""
