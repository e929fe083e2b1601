"""Any timm model as a backbone: made, its dense features, its initial weights."""
