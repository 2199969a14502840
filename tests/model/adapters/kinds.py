"""Every kind of adapter in a small size, for the tests that hold of all of them."""

SMALL = {
    "lora": {"rank": 4},
    "dora": {"rank": 4},
    "adalora": {"rank": 4},
    "ia3": {},
    "prefix": {"prefix_tokens": 3},
    "bottleneck": {"bottleneck_width": 5},
    "full": {},
}
ADDED = [kind for kind in SMALL if kind != "full"]
WITH_DROPOUT = ["lora", "dora", "adalora", "bottleneck"]
