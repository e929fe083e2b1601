"""`lightning robustness`: a trained classifier on images from elsewhere."""
