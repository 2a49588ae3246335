from prices import price


class Cart:
    def __init__(self):
        self.items = {}

    def add(self, name, count=1):
        self.items[name] = count

    def total(self, percent=0):
        return sum(price(name, percent) * count for name, count in self.items.items())
