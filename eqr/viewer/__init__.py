"""Looking at trajectories: in Jupyter and in a page."""
