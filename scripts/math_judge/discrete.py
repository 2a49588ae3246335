"""Number theory, counting and probability problems."""

import itertools
from fractions import Fraction
from math import comb, factorial, gcd, lcm, prod

from exact import NAMES, Problem, agreed, off, pick, plain


def power_remainder(chance):
    base, exponent, modulus = chance.randint(2, 9), chance.randint(25, 120), chance.choice([7, 9, 11, 13, 17])
    base += base % modulus == 0
    value = 1
    for _ in range(exponent):
        value = value * base % modulus
    agreed(pow(base, exponent, modulus), value)
    text = pick(
        chance,
        f"What is the remainder when ${base}^{{{exponent}}}$ is divided by {modulus}?",
        f"Find the smallest non-negative integer $r$ with ${base}^{{{exponent}}} \\equiv r \\pmod{{{modulus}}}$.",
    )
    work = f"The powers of {base} repeat modulo {modulus}, which leaves {base} to a small power."
    return Problem(text, *plain(value), work, off(value, (value * base) % modulus, modulus - value))


def common_multiple(chance):
    a, b = (chance.randint(2, 9) * chance.choice([6, 10, 12]) for _ in range(2))
    b += 6 * (a == b)
    value = agreed(lcm(a, b), next(it for it in itertools.count(a, a) if it % b == 0))
    text = pick(
        chance,
        f"Two lights flash together at noon. One flashes every {a} seconds, the other every {b} seconds. After how many seconds do they next flash together?",
        f"What is the least common multiple of {a} and {b}?",
    )
    work = f"gcd({a}, {b}) = {gcd(a, b)}, so the least common multiple is {a} times {b} over {gcd(a, b)}."
    return Problem(text, *plain(value), work, off(value, a * b, gcd(a, b)))


def divisor_count(chance):
    exponents = [chance.randint(1, 4), chance.randint(1, 3), chance.randint(0, 1)]
    subject = prod(prime**power for prime, power in zip((2, 3, chance.choice([5, 7])), exponents))
    value = agreed(prod(it + 1 for it in exponents), sum(subject % it == 0 for it in range(1, subject + 1)))
    text = pick(
        chance,
        f"How many positive divisors does {subject} have?",
        f"Count the positive integers that divide {subject} without remainder.",
    )
    work = f"The exponents in the prime factorisation of {subject} are {', '.join(str(it) for it in exponents if it)}; add one to each and multiply."
    return Problem(text, *plain(value), work, off(value, value - 2, prod(it for it in exponents if it)))


def two_remainders(chance):
    m, n = chance.choice([(5, 7), (7, 9), (8, 11), (9, 13), (11, 12), (7, 10)])
    a, b = chance.randint(1, m - 1), chance.randint(1, n - 1)
    found = [it for it in range(1, m * n + 1) if it % m == a and it % n == b]
    value = agreed((a * n * pow(n, -1, m) + b * m * pow(m, -1, n)) % (m * n), found[0])
    text = pick(
        chance,
        f"Find the smallest positive integer that leaves remainder {a} on division by {m} and remainder {b} on division by {n}.",
        f"A basket of eggs has {a} left over when they are counted by {m}, and {b} left over when counted by {n}. What is the least number of eggs it can hold?",
    )
    work = f"Go through {b}, {b + n}, {b + 2 * n}, and so on until the remainder by {m} is {a}."
    return Problem(text, *plain(value), work, off(value, value + m * n, value + n))


def trailing_zeros(chance):
    subject = chance.randint(30, 160)
    digits = str(factorial(subject))
    count, power = 0, 5
    while power <= subject:
        count, power = count + subject // power, power * 5
    value = agreed(count, len(digits) - len(digits.rstrip("0")))
    text = pick(
        chance,
        f"How many zeros stand at the end of ${subject}!$ in decimal notation?",
        f"With how many zeros does the number ${subject}!$ end?",
    )
    work = f"Count the factors of 5 up to {subject}: the multiples of 5, once more those of 25, and so on."
    return Problem(text, *plain(value), work, off(value, subject // 5, value + 1))


def letter_orders(chance):
    word = chance.choice(
        ["PEPPER", "BANANA", "LEVEL", "COFFEE", "TEETH", "MAMMAL", "ROTOR", "CANAL", "PAPAYA", "INDIGO"]
    )
    value = factorial(len(word))
    for letter in set(word):
        value //= factorial(word.count(letter))
    agreed(value, len(set(itertools.permutations(word))))
    text = pick(
        chance,
        f"In how many different orders can the letters of the word {word} be written?",
        f"How many distinct arrangements do the letters of {word} have?",
    )
    work = f"{len(word)}! orders, divided by the orders of equal letters among themselves."
    return Problem(text, *plain(value), work, off(value, factorial(len(word)), value * 2))


def committees(chance):
    a, b, size = chance.randint(4, 7), chance.randint(4, 6), chance.randint(3, 4)
    value = comb(a + b, size) - comb(a, size)
    people = ["a"] * a + ["b"] * b
    agreed(value, sum("b" in chosen for chosen in itertools.combinations(people, size)))
    text = pick(
        chance,
        f"From {a} painters and {b} sculptors a jury of {size} is chosen that has at least one sculptor. In how many ways can that be done?",
        f"A club has {a} juniors and {b} seniors. How many groups of {size} members contain at least one senior?",
    )
    work = f"All groups are C({a + b}, {size}) = {comb(a + b, size)}; those without are C({a}, {size}) = {comb(a, size)}."
    return Problem(text, *plain(value), work, off(value, comb(a + b, size), b * comb(a + b - 1, size - 1)))


def grid_paths(chance):
    width, height = chance.randint(4, 7), chance.randint(3, 6)
    x, y = chance.randint(1, width - 1), chance.randint(1, height - 1)
    value = comb(width + height, width) - comb(x + y, x) * comb(width + height - x - y, width - x)
    ways = {}
    for place in itertools.product(range(width + 1), range(height + 1)):
        before = [ways.get((place[0] - 1, place[1]), 0), ways.get((place[0], place[1] - 1), 0)]
        ways[place] = 0 if place == (x, y) else sum(before) if any(place) else 1
    agreed(value, ways[width, height])
    text = pick(
        chance,
        f"A walker goes from $(0, 0)$ to $({width}, {height})$ in steps of one unit to the right or up, and must not pass through $({x}, {y})$. How many routes are there?",
        f"How many shortest lattice paths lead from $(0, 0)$ to $({width}, {height})$ and avoid the point $({x}, {y})$?",
    )
    through = comb(x + y, x) * comb(width + height - x - y, width - x)
    work = f"Of {comb(width + height, width)} paths, {through} go through the point."
    return Problem(text, *plain(value), work, off(value, comb(width + height, width), through))


def multiples(chance):
    most, (a, b) = chance.choice([200, 300, 500, 600, 1000]), chance.choice(
        [(3, 5), (4, 6), (6, 8), (5, 7), (4, 10)]
    )
    value = most // a + most // b - most // lcm(a, b)
    agreed(value, sum(it % a == 0 or it % b == 0 for it in range(1, most + 1)))
    text = pick(
        chance,
        f"How many integers from 1 to {most} are divisible by {a} or by {b} (or by both)?",
        f"Count the whole numbers from 1 to {most} that are multiples of {a} or multiples of {b}.",
    )
    work = f"{most // a} + {most // b} - {most // lcm(a, b)}, since the multiples of {lcm(a, b)} are counted twice."
    return Problem(
        text, *plain(value), work, off(value, most // a + most // b, most // a + most // b - most // (a * b))
    )


def shares(chance):
    total, least = chance.randint(8, 16), chance.randint(0, 1)
    value = comb(total - 3 * least + 2, 2)
    agreed(
        value, sum(least <= total - a - b for a in range(least, total + 1) for b in range(least, total + 1))
    )
    each = "at least one" if least else "any number, none included,"
    text = pick(
        chance,
        (
            f"In how many ways can {total} equal coins be shared among three children if each child may get {each} of them?"
            if not least
            else f"In how many ways can {total} equal coins be shared among three children if each child gets at least one?"
        ),
        f"How many triples $(x, y, z)$ of {'positive' if least else 'non-negative'} integers satisfy $x + y + z = {total}$?",
    )
    work = f"Stars and bars: C({total - 3 * least + 2}, 2)."
    return Problem(text, *plain(value), work, off(value, comb(total + 2, 3), comb(total + 3, 2)))


def dice_sum(chance):
    total = chance.randint(4, 11)
    way = chance.choice(["exactly", "at least", "at most"])
    holds = {
        "exactly": lambda it: it == total,
        "at least": lambda it: it >= total,
        "at most": lambda it: it <= total,
    }[way]
    rolls = list(itertools.product(range(1, 7), repeat=2))
    count = sum(holds(sum(roll)) for roll in rolls)
    by_sum = sum(6 - abs(7 - it) for it in range(2, 13) if holds(it))
    value = agreed(Fraction(count, 36), Fraction(by_sum, 36))
    text = pick(
        chance,
        f"Two fair dice are rolled. What is the probability that the sum is {way} {total}?",
        f"{chance.choice(NAMES)} throws two fair six-sided dice. Find the probability of a total of {way} {total}.",
    )
    work = f"{count} of the 36 equally likely pairs qualify."
    return Problem(text, *plain(value), work, off(value, 1 - value, Fraction(by_sum, 11 * 6)))


def same_colour(chance):
    red, blue = chance.randint(3, 8), chance.randint(2, 7)
    every = red + blue
    pairs = list(itertools.combinations(["r"] * red + ["b"] * blue, 2))
    value = agreed(
        Fraction(comb(red, 2) + comb(blue, 2), comb(every, 2)),
        Fraction(sum(a == b for a, b in pairs), len(pairs)),
    )
    text = pick(
        chance,
        f"A bag holds {red} red and {blue} blue balls. Two are drawn without putting any back. What is the probability that both have the same colour?",
        f"In a drawer lie {red} grey and {blue} black socks. Two are taken out in the dark. How likely is it that they match?",
    )
    work = f"({comb(red, 2)} + {comb(blue, 2)}) of {comb(every, 2)} pairs match."
    return Problem(text, *plain(value), work, off(value, Fraction(red**2 + blue**2, every**2), 1 - value))


def coin_heads(chance):
    tosses = chance.randint(4, 7)
    least = chance.randint(2, tosses - 1)
    value = Fraction(sum(comb(tosses, it) for it in range(least, tosses + 1)), 2**tosses)
    agreed(
        value, Fraction(sum(sum(it) >= least for it in itertools.product((0, 1), repeat=tosses)), 2**tosses)
    )
    text = pick(
        chance,
        f"A fair coin is tossed {tosses} times. What is the probability of at least {least} heads?",
        f"{tosses} fair coins are thrown at once. Find the probability that {least} or more of them show heads.",
    )
    work = f"Add C({tosses}, k) for k from {least} to {tosses} and divide by {2**tosses}."
    return Problem(text, *plain(value), work, off(value, Fraction(comb(tosses, least), 2**tosses), 1 - value))


def expected_larger(chance):
    sides = chance.choice([3, 4, 5, 6, 8, 10, 12, 20])
    rolls = itertools.product(range(1, sides + 1), repeat=2)
    value = agreed(
        Fraction((sides + 1) * (4 * sides - 1), 6 * sides),
        Fraction(sum(max(roll) for roll in rolls), sides**2),
    )
    text = pick(
        chance,
        f"Two fair dice with the faces 1 to {sides} are rolled. What is the expected value of the larger of the two numbers (either one if they are equal)?",
        f"{chance.choice(NAMES)} rolls a fair {sides}-sided die twice and keeps the higher result. What is kept on average, exactly?",
    )
    work = f"The larger one is k in 2k - 1 of {sides**2} cases; sum k(2k - 1) and divide."
    return Problem(text, *plain(value), work, off(value, Fraction(sides + 1, 2), Fraction(3 * sides, 4)))


def random_divisor(chance):
    most, (a, b) = chance.choice([30, 50, 60, 100]), chance.choice([(2, 3), (3, 4), (2, 5), (4, 5)])
    good = [it for it in range(1, most + 1) if it % a == 0 and it % b]
    value = agreed(Fraction(len(good), most), Fraction(most // a - most // lcm(a, b), most))
    text = pick(
        chance,
        f"An integer from 1 to {most} is picked at random, each equally likely. What is the probability that it is divisible by {a} but not by {b}?",
        f"One of {most} tickets, numbered from 1 to {most}, is drawn. Find the probability that its number is a multiple of {a} and not a multiple of {b}.",
    )
    work = f"{most // a} multiples of {a}, less {most // lcm(a, b)} that are multiples of {b} too."
    return Problem(
        text, *plain(value), work, off(value, Fraction(most // a, most), Fraction(most // lcm(a, b), most))
    )
