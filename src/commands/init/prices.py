CENTS = {"pen": 120, "book": 1499, "lamp": 2995}


def price(name, percent=0):
    """The price in cents, less a discount."""
    if percent > 100:
        raise ValueError("a discount is at most 100 %")
    return CENTS[name] * (100 - percent) // 100
