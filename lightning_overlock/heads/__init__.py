"""Dense prediction on any timm backbone: its four maps, Mask R-CNN, UPerNet, FCN, Semantic FPN."""
