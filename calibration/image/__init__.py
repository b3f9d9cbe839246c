"""The image of a box: an unpacked Linux_for_Tegra gets our package and loses what a camera box does not need."""
