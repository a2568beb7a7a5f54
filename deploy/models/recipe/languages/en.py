"""English grade-school problems: eighteen templates, a few phrasings each.

Every step is one operation on numbers that a pupil can follow, so that the
reasoning, not a table of answers, carries the result.
"""

import random

from . import Language, Problem

NAMES = (
    "Ada", "Amir", "Anna", "Ben", "Carla", "Chloe", "Dana", "David", "Elena",
    "Emma", "Felix", "Grace", "Hana", "Hugo", "Ines", "Ivan", "Jack", "Jonas",
    "Kira", "Leo", "Lena", "Lily", "Luca", "Maria", "Max", "Maya", "Mia",
    "Nadia", "Noah", "Nora", "Olga", "Omar", "Oscar", "Paul", "Petra", "Rosa",
    "Ruth", "Sam", "Sara", "Sofia", "Theo", "Tom", "Vera", "Zoe")

GOODS = ("pens", "books", "notebooks", "cups", "plates", "balls", "candles",
         "hats", "scarves", "brushes", "rulers", "folders", "lamps", "toys")
SWEETS = ("apples", "pears", "cookies", "muffins", "plums", "oranges",
          "peaches", "lemons", "buns", "pies", "cakes", "rolls")
SMALL_THINGS = ("stickers", "marbles", "stamps", "shells", "beads", "coins",
                "cards", "buttons", "stones", "badges")
CONTAINERS = ("boxes", "bags", "baskets", "packs", "jars", "trays")
PLANTS = ("tulips", "roses", "beans", "carrots", "lettuces", "daisies",
          "tomatoes", "onions")


def two_purchases(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    first, second = rng.sample(GOODS, 2)
    count, price = rng.randint(2, 9), rng.randint(2, 12)
    count2, price2 = rng.randint(2, 9), rng.randint(2, 12)
    cost, cost2 = count * price, count2 * price2
    question = rng.choice((
        f"{name} buys {count} {first} at ${price} each and {count2} {second} "
        f"at ${price2} each. How many dollars does {name} spend?",
        f"A shop sells {first} for ${price} and {second} for ${price2}. {name} "
        f"takes {count} {first} and {count2} {second}. What is the total "
        "price in dollars?",
        f"{name} needs {count} {first} and {count2} {second}. The {first} cost "
        f"${price} each and the {second} cost ${price2} each. How much does "
        f"{name} pay in dollars?"))
    return Problem(question, (
        f"The {first} cost {count} * {price} = {cost} dollars.",
        f"The {second} cost {count2} * {price2} = {cost2} dollars.",
        f"Together that is {cost} + {cost2} = {cost + cost2} dollars."),
        cost + cost2)


def change(rng: random.Random) -> Problem:
    name, goods = rng.choice(NAMES), rng.choice(GOODS)
    count, price = rng.randint(2, 9), rng.randint(2, 11)
    cost = count * price
    paid = rng.choice([note for note in (20, 50, 100) if note > cost])
    question = rng.choice((
        f"{name} pays for {count} {goods} with ${paid}. Each of the {goods} "
        f"costs ${price}. How many dollars does {name} get back?",
        f"{name} has ${paid} and buys {count} {goods} for ${price} each. How "
        "many dollars are left?",
        f"At ${price} each, {name} picks {count} {goods} and hands over "
        f"${paid}. How much change is due in dollars?"))
    return Problem(question, (
        f"The {goods} cost {count} * {price} = {cost} dollars.",
        f"What remains is {paid} - {cost} = {paid - cost} dollars."),
        paid - cost)


def given_away(rng: random.Random) -> Problem:
    name, friend = rng.sample(NAMES, 2)
    things, containers = rng.choice(SWEETS), rng.choice(CONTAINERS)
    count, each = rng.randint(3, 12), rng.randint(3, 12)
    total = count * each
    away = rng.randint(2, total - 1)
    question = rng.choice((
        f"{name} has {count} {containers} with {each} {things} in each. "
        f"{name} gives {away} {things} to {friend}. How many {things} does "
        f"{name} still have?",
        f"There are {each} {things} in each of {count} {containers}. {friend} "
        f"takes {away} of the {things}. How many {things} are left?",
        f"{name} fills {count} {containers} with {each} {things} each and "
        f"then sells {away} {things}. How many {things} remain?"))
    return Problem(question, (
        f"At first there are {count} * {each} = {total} {things}.",
        f"Then {total} - {away} = {total - away} {things} are left."),
        total - away)


def equal_shares(rng: random.Random) -> Problem:
    name, friend = rng.sample(NAMES, 2)
    things = rng.choice(SMALL_THINGS)
    people, each = rng.randint(2, 9), rng.randint(3, 15)
    total = people * each
    first = rng.randint(2, total - 2)
    second = total - first
    question = rng.choice((
        f"{name} has {first} {things} and {friend} has {second} {things}. They "
        f"put them together and share them equally among {people} children. "
        f"How many {things} does each child get?",
        f"{name} finds {first} {things} in the morning and {second} {things} "
        f"in the evening, and sorts them into {people} equal piles. How many "
        f"{things} are in each pile?"))
    return Problem(question, (
        f"Together there are {first} + {second} = {total} {things}.",
        f"Each one gets {total} / {people} = {each} {things}."), each)


def pages_left(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    days, pages = rng.randint(3, 9), rng.randint(5, 20)
    read = days * pages
    left = rng.randint(5, 90)
    total = read + left
    question = rng.choice((
        f"A book has {total} pages. {name} reads {pages} pages a day for "
        f"{days} days. How many pages are left to read?",
        f"{name} reads {pages} pages of a book of {total} pages every day. "
        f"How many pages remain after {days} days?"))
    return Problem(question, (
        f"In {days} days {name} reads {days} * {pages} = {read} pages.",
        f"That leaves {total} - {read} = {left} pages."), left)


def wages(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    hours, rate, days = rng.randint(2, 8), rng.randint(5, 12), rng.randint(2, 6)
    worked = hours * days
    earned = worked * rate
    question = rng.choice((
        f"{name} earns ${rate} an hour and works {hours} hours a day. How many "
        f"dollars does {name} earn in {days} days?",
        f"{name} works {hours} hours a day for {days} days and is paid ${rate} "
        f"for every hour. How many dollars is that in all?"))
    return Problem(question, (
        f"{name} works {hours} * {days} = {worked} hours.",
        f"The pay is {worked} * {rate} = {earned} dollars."), earned)


def journey(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    vehicle = rng.choice(("bus", "train", "car", "boat", "truck"))
    speed, hours = rng.choice(range(20, 95, 5)), rng.randint(2, 5)
    more = rng.randint(5, 90)
    distance = speed * hours
    question = rng.choice((
        f"A {vehicle} goes {speed} miles an hour for {hours} hours and then "
        f"{more} miles further. How many miles does it go in total?",
        f"{name} travels by {vehicle} for {hours} hours at {speed} miles an "
        f"hour, then for another {more} miles. How many miles does {name} "
        "travel?"))
    return Problem(question, (
        f"The first part is {speed} * {hours} = {distance} miles.",
        f"The whole way is {distance} + {more} = {distance + more} miles."),
        distance + more)


def ages(rng: random.Random) -> Problem:
    young, old = rng.sample(NAMES, 2)
    age, times = rng.randint(3, 15), rng.randint(2, 5)
    years = rng.randint(2, 12)
    older = age * times
    later = older + years
    question = rng.choice((
        f"{young} is {age} years old. {old} is {times} times as old as "
        f"{young}. How old will {old} be in {years} years?",
        f"{old} is {times} times as old as {young}, who is {age}. What will "
        f"the age of {old} be {years} years from now?"))
    return Problem(question, (
        f"{old} is {age} * {times} = {older} years old.",
        f"In {years} years that will be {older} + {years} = {later}."), later)


def half_as_many(rng: random.Random) -> Problem:
    name, things = rng.choice(NAMES), rng.choice(SWEETS + SMALL_THINGS)
    earlier, later = rng.choice((
        ("on Monday", "on Tuesday"), ("on Friday", "on Saturday"),
        ("in April", "in May"), ("in June", "in July"),
        ("last week", "this week")))
    half = rng.randint(4, 60)
    first = 2 * half
    question = rng.choice((
        f"{name} sold {first} {things} {earlier} and half as many {later}. "
        f"How many {things} did {name} sell in all?",
        f"A shop sold {first} {things} {earlier}, but only half as many "
        f"{later}. How many {things} is that altogether?"))
    return Problem(question, (
        f"Half of {first} is {first} / 2 = {half} {things}.",
        f"Both together are {first} + {half} = {first + half} {things}."),
        first + half)


def discount(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    item = rng.choice(("coat", "bike", "bag", "chair", "tent", "watch", "desk",
                       "jacket", "phone", "table"))
    percent, divisor = rng.choice(((10, 10), (20, 5), (25, 4), (50, 2)))
    cut = rng.randint(2, 25)
    price = cut * divisor
    question = rng.choice((
        f"A {item} costs ${price}. Today it is {percent}% off. How many "
        f"dollars does {name} pay for it?",
        f"{name} wants a {item} priced at ${price} and has a coupon for "
        f"{percent}% off. What is the new price in dollars?"))
    return Problem(question, (
        f"The discount is {price} / {divisor} = {cut} dollars.",
        f"The new price is {price} - {cut} = {price - cut} dollars."),
        price - cut)


def egg_cartons(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    size = rng.choice((4, 6, 10, 12))
    hens = rng.randint(2, 9) * (size // 2)
    days = rng.choice((2, 4, 6))
    eggs = hens * days
    cartons = eggs // size
    question = rng.choice((
        f"{name} has {hens} hens, and each hen lays one egg a day. A carton "
        f"holds {size} eggs. How many cartons can {name} fill in {days} days?",
        f"Each of the {hens} hens of {name} lays an egg every day. How many "
        f"cartons of {size} eggs do the hens fill in {days} days?"))
    return Problem(question, (
        f"The hens lay {hens} * {days} = {eggs} eggs.",
        f"They fill {eggs} / {size} = {cartons} cartons."), cartons)


def saving_up(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    item = rng.choice(("bike", "drum", "tent", "camera", "game", "guitar",
                       "kite", "skateboard"))
    weeks, each = rng.randint(3, 12), rng.randint(3, 12)
    saved = rng.randint(5, 60)
    missing = weeks * each
    price = saved + missing
    question = rng.choice((
        f"A {item} costs ${price}. {name} has ${saved} and saves ${each} every "
        f"week. After how many weeks can {name} buy the {item}?",
        f"{name} wants a {item} for ${price}, already has ${saved} and puts "
        f"aside ${each} a week. How many weeks does {name} need?"))
    return Problem(question, (
        f"{name} still needs {price} - {saved} = {missing} dollars.",
        f"That takes {missing} / {each} = {weeks} weeks."), weeks)


def passengers(rng: random.Random) -> Problem:
    vehicle = rng.choice(("bus", "train", "tram", "ferry"))
    start = rng.randint(12, 60)
    off = rng.randint(2, start - 5)
    on = rng.randint(2, 40)
    rest = start - off
    off2 = rng.randint(2, rest + on - 1)
    question = rng.choice((
        f"A {vehicle} carries {start} people. At the first stop {off} get off "
        f"and {on} get on. At the second stop {off2} get off. How many people "
        f"are on the {vehicle} now?",
        f"There are {start} people on a {vehicle}. First {off} leave and {on} "
        f"come in, then {off2} more leave. How many people stay on the "
        f"{vehicle}?"))
    return Problem(question, (
        f"First {start} - {off} = {rest} people stay.",
        f"Then there are {rest} + {on} = {rest + on} people.",
        f"At last {rest + on} - {off2} = {rest + on - off2} people are left."),
        rest + on - off2)


def garden_rows(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    plant, plant2 = rng.sample(PLANTS, 2)
    rows, each = rng.randint(3, 9), rng.randint(4, 12)
    rows2, each2 = rng.randint(2, 9), rng.randint(2, 9)
    total, total2 = rows * each, rows2 * each2
    question = rng.choice((
        f"{name} plants {rows} rows of {each} {plant} and {rows2} rows of "
        f"{each2} {plant2}. How many plants is that?",
        f"In a garden there are {rows} rows with {each} {plant} each and "
        f"{rows2} rows with {each2} {plant2} each. How many plants does the "
        "garden have?"))
    return Problem(question, (
        f"There are {rows} * {each} = {total} {plant}.",
        f"There are {rows2} * {each2} = {total2} {plant2}.",
        f"In all there are {total} + {total2} = {total + total2} plants."),
        total + total2)


def recipe_for_more(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    stuff = rng.choice(("eggs", "cups of flour", "spoons of sugar",
                        "cups of milk", "potatoes", "cups of rice"))
    people, times, amount = (rng.randint(2, 8), rng.randint(2, 9),
                             rng.randint(2, 12))
    guests = people * times
    question = rng.choice((
        f"A recipe for {people} people needs {amount} {stuff}. {name} cooks "
        f"for {guests} people. How many {stuff} does {name} need?",
        f"{name} uses {amount} {stuff} to cook for {people} people. How many "
        f"{stuff} are needed for {guests} people?"))
    return Problem(question, (
        f"That is {guests} / {people} = {times} times the recipe.",
        f"So it takes {times} * {amount} = {times * amount} {stuff}."),
        times * amount)


def fraction_eaten(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    things = rng.choice(SWEETS)
    word, divisor = rng.choice((("half", 2), ("a third", 3), ("a quarter", 4),
                                ("a fifth", 5), ("a tenth", 10)))
    part = rng.randint(2, 20)
    total = part * divisor
    question = rng.choice((
        f"{name} has {total} {things} and gives {word} of them to the "
        f"neighbors. How many {things} does {name} keep?",
        f"Of {total} {things} on the table, {name} takes {word}. How many "
        f"{things} stay on the table?"))
    return Problem(question, (
        f"The part taken is {total} / {divisor} = {part} {things}.",
        f"There remain {total} - {part} = {total - part} {things}."),
        total - part)


def average_of_three(rng: random.Random) -> Problem:
    name = rng.choice(NAMES)
    what = rng.choice(("points", "goals", "miles", "laps", "words"))
    average = rng.randint(4, 30)
    total = 3 * average
    first = rng.randint(2, total - 4)
    second = rng.randint(2, total - first - 2)
    third = total - first - second
    question = (
        f"{name} counts {first} {what} on the first day, {second} {what} on "
        f"the second day and {third} {what} on the third day. What is the "
        f"average number of {what} a day?")
    return Problem(question, (
        f"The first two days give {first} + {second} = {first + second}.",
        f"All three give {first + second} + {third} = {total}.",
        f"The average is {total} / 3 = {average} {what}."), average)


def tickets(rng: random.Random) -> Problem:
    place = rng.choice(("zoo", "museum", "circus", "cinema", "fair", "theater"))
    adults, children = rng.randint(2, 9), rng.randint(2, 12)
    child = rng.randint(2, 9)
    more = rng.randint(2, 9)
    adult = child + more
    total = adults * adult + children * child
    question = rng.choice((
        f"At the {place} a child pays ${child} and an adult pays ${more} more. "
        f"How many dollars do {adults} adults and {children} children pay?",
        f"A child's ticket for the {place} costs ${child}. An adult's ticket "
        f"costs ${more} more. What do tickets for {adults} adults and "
        f"{children} children cost in dollars?"))
    return Problem(question, (
        f"An adult pays {child} + {more} = {adult} dollars.",
        f"The adults pay {adults} * {adult} = {adults * adult} dollars.",
        f"The children pay {children} * {child} = {children * child} dollars.",
        f"In all it is {adults * adult} + {children * child} = {total} "
        "dollars."), total)


LANGUAGE = Language(
    code="en",
    answer_prefix="Answer",
    instruction=("Reason in short steps. On the last line write Answer: and "
                 "the integer.\n\n{input}"),
    templates=(
        two_purchases, change, given_away, equal_shares, pages_left, wages,
        journey, ages, half_as_many, discount, egg_cartons, saving_up,
        passengers, garden_rows, recipe_for_more, fraction_eaten,
        average_of_three, tickets))
