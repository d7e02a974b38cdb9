"""The pages of the site, staged from notebooks, committed results and source code."""
