"""What comes from the authors: files of the hub, their weights, their data sets."""
