"""Makes one dynamic symbol of a shared library unfindable: python3 omit.py LIBRARY SYMBOL

For tests with a driver that lacks a function. The first letters of the symbol's name are overwritten in the string
table, so that no look-up matches it. ELF, 64 bits, little-endian.
"""

import struct
import sys

SHT_DYNSYM = 11


def sections(image):
    offset, = struct.unpack_from("<Q", image, 0x28)
    size, count = struct.unpack_from("<HH", image, 0x3A)
    for index in range(count):
        fields = struct.unpack_from("<IIQQQQIIQQ", image, offset + index * size)
        yield {"type": fields[1], "offset": fields[4], "size": fields[5], "link": fields[6], "entry": fields[9]}


def main():
    path, symbol = sys.argv[1], sys.argv[2].encode()
    with open(path, "rb") as file:
        image = bytearray(file.read())
    if image[:6] != b"\x7fELF\x02\x01":
        sys.exit(f"error: {path} is no 64-bit little-endian ELF file")
    table = list(sections(image))
    symbols = next(section for section in table if section["type"] == SHT_DYNSYM)
    strings = table[symbols["link"]]["offset"]
    starts = [
        struct.unpack_from("<I", image, at)[0] + strings
        for at in range(symbols["offset"], symbols["offset"] + symbols["size"], symbols["entry"])
    ]
    names = {image[start : image.index(b"\0", start)].decode(): start for start in starts}
    start = names.get(symbol.decode())
    if start is None:
        sys.exit(f"error: {path} has no symbol {symbol.decode()}")
    # Linkers may store one name as the end of another.
    shared = [name for name, other in names.items() if start < other <= start + len(symbol) or other < start < other + len(name)]
    if shared:
        sys.exit(f"error: {symbol.decode()} shares its text with {shared[0]}")
    image[start : start + 2] = b"\x7f\x7f"
    with open(path, "wb") as file:
        file.write(image)


main()
