"""Compares the times of `GET /triggers/preview` with those of two others, for random expressions.

Usage: schedules.py API_URL [SEED]     (with croniter installed)

The first is croniter. What is left out, because croniter means something else by it:
- a `*/n` in one of the days together with a restriction of the other: croniter takes it for a restriction, and so
  demands either; for this service, croner and Vixie cron only `*` is none;
- ranges of one value, `7-7`: croniter takes them for all values;
- seconds: croniter expects them in the last field, so they are moved there;
- changes of the clocks: croniter does not distinguish times with a wildcard from fixed ones. The months of the comparison have no
  such change in these zones.

The second is a search here: about changes of the clocks, it looks at each minute of UTC what the clocks of the zone
show. The changes are of the past, so that all versions of the time zone database agree on them.
"""

import json
import random
import sys
import urllib.parse
import urllib.request
from collections import defaultdict
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from croniter import croniter

COUNT = 1000
TIMES = 10
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]
# Days at which clocks are changed, each with its zone: by an hour, by half an hour, at midnight, and by a whole day.
CHANGES = [
    ("Europe/Berlin", "2024-03-31"),
    ("Europe/Berlin", "2024-10-27"),
    ("America/New_York", "2024-03-10"),
    ("America/New_York", "2024-11-03"),
    ("Australia/Lord_Howe", "2024-04-07"),
    ("Australia/Lord_Howe", "2024-10-06"),
    ("Africa/Casablanca", "2024-03-10"),
    ("Africa/Casablanca", "2024-04-14"),
    ("America/Sao_Paulo", "2018-02-18"),
    ("America/Sao_Paulo", "2018-11-04"),
    ("Pacific/Apia", "2011-12-30"),
]
MINUTE = timedelta(minutes=1)


def field(source, low, high):
    kind = source.randrange(6)
    if kind < 2:
        return "*"
    if kind == 2:
        return str(source.randint(low, high))
    if kind == 3:
        first = source.randint(low, high - 1)
        return f"{first}-{source.randint(first + 1, high)}"
    if kind == 4:
        return f"*/{source.randint(2, max(2, high // 2))}"
    return f"{source.randint(low, high)},{source.randint(low, high)}"


def expression(source):
    while True:
        seconds = field(source, 0, 59) if source.randrange(4) == 0 else None
        rest = [field(source, 0, 59), field(source, 0, 23), field(source, 1, 28), field(source, 1, 12), field(source, 0, 6)]
        days = [rest[2], rest[4]]
        if any(day.startswith("*/") for day in days) and "*" not in days:
            continue
        return seconds, rest


def preview(api, query):
    with urllib.request.urlopen(f"{api}/triggers/preview?{urllib.parse.urlencode(query)}") as answer:
        return json.load(answer)


def compare_with_croniter(api, source, seed):
    compared = 0
    for number in range(COUNT):
        seconds, rest = expression(source)
        zone = ZONES[number % len(ZONES)]
        # From May on, up to October, no zone of these changes its clocks; later times are not compared.
        begin = datetime(2027, 5, 1, tzinfo=timezone.utc) + timedelta(minutes=source.randrange(120 * 24 * 60))
        end = datetime(2027, 9, 30, tzinfo=timezone.utc)
        ours = " ".join(([seconds] if seconds else []) + rest)
        theirs = " ".join(rest + ([seconds] if seconds else []))
        query = {"cron": ours, "time_zone": zone, "from": begin.strftime("%Y-%m-%dT%H:%M:%SZ"), "count": TIMES}
        times = [datetime.fromisoformat(time["local"]) for time in preview(api, query)["times"]]
        iterator = croniter(theirs, begin.astimezone(ZoneInfo(zone)) - timedelta(seconds=1))
        for time in times:
            expected = iterator.get_next(datetime)
            if time > end or expected > end:
                break
            assert time == expected, f"{ours} in {zone} from {begin}: {time}, but croniter says {expected}; seed {seed}"
            compared += 1
    assert compared > COUNT * TIMES // 2, compared
    print(f"{compared} times of {COUNT} expressions are those of croniter")


class Clocks:
    """What the clocks of a zone show about a change, minute by minute."""

    def __init__(self, zone, day):
        middle = datetime.fromisoformat(day).replace(tzinfo=timezone.utc)
        self.begin, self.end = middle - timedelta(hours=36), middle + timedelta(hours=60)
        # Instants of each local time; local times that are skipped, with the first instant after them.
        self.shown, self.skipped = defaultdict(list), []
        instant, before = self.begin, None
        while instant < self.end:
            local = instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
            self.shown[local].append(instant)
            while before is not None and before + MINUTE < local:
                before += MINUTE
                self.skipped.append((before, instant))
            before, instant = local, instant + MINUTE


def values(field, low, high):
    """Values of a field of the forms that `field` makes."""
    if field == "*":
        return range(low, high + 1)
    if field.startswith("*/"):
        return range(low, high + 1, int(field[2:]))
    if "-" in field:
        first, last = field.split("-")
        return range(int(first), int(last) + 1)
    return sorted({int(value) for value in field.split(",")})


def searched(clocks, fields, gap, fold):
    """Instants at which an expression fires, each with the note of the preview."""
    seconds, minutes, hours, days, months, weekdays = fields
    is_wildcard = "*" in "".join(fields[:3])
    at_seconds = [timedelta(seconds=second) for second in values(seconds, 0, 59)]
    minutes, hours = set(values(minutes, 0, 59)), set(values(hours, 0, 23))
    in_months, of_month, of_week = set(values(months, 1, 12)), set(values(days, 1, 31)), set(values(weekdays, 0, 6))

    def matches(local):
        if local.minute not in minutes or local.hour not in hours or local.month not in in_months:
            return False
        is_day, is_weekday = local.day in of_month, local.isoweekday() % 7 in of_week
        return is_day and is_weekday if "*" in (days, weekdays) else is_day or is_weekday

    found = {}
    for local, instants in clocks.shown.items():
        if matches(local):
            is_twice = fold == "both" or (fold == "auto" and is_wildcard)
            for instant in instants if is_twice else instants[:1]:
                for second in at_seconds:
                    found[instant + second] = "fold" if len(instants) > 1 else None
    if gap == "next" and not is_wildcard:
        for local, after in clocks.skipped:
            if matches(local):
                found.setdefault(after, "gap")
    return sorted(found.items())


def compare_about_changes(api, source, seed):
    changes = [(zone, Clocks(zone, day)) for zone, day in CHANGES]
    compared = {None: 0, "gap": 0, "fold": 0}
    for number in range(COUNT):
        zone, clocks = changes[number % len(changes)]
        gap, fold = source.choice(["next", "skip"]), source.choice(["auto", "first", "both"])
        # Near the change, and often enough to fire there; every other time without a wildcard in the time of the day.
        if number % 2 == 0:
            seconds = []
            time = [str(source.randint(0, 59)), ",".join(str(hour) for hour in sorted(source.sample(range(5), 2)))]
        else:
            seconds = [field(source, 0, 59)] if source.randrange(4) == 0 else []
            time = [field(source, 0, 59), source.choice(["*", field(source, 0, 5), field(source, 20, 23), field(source, 0, 23)])]
        seldom = source.randrange(4) == 0
        days = [field(source, 1, 31), "*", field(source, 0, 6)] if seldom else ["*", "*", "*"]
        fields = seconds + time + days
        begin = clocks.begin + timedelta(minutes=source.randrange(48 * 60))
        query = {"cron": " ".join(fields), "time_zone": zone, "from": begin.strftime("%Y-%m-%dT%H:%M:%SZ"),
                 "count": 2 * TIMES, "dst_gap": gap, "dst_fold": fold}
        times = [(datetime.fromisoformat(time["at"]), time["note"]) for time in preview(api, query)["times"]]
        times = [(instant, note) for instant, note in times if instant < clocks.end]
        all_expected = searched(clocks, fields if seconds else ["0"] + fields, gap, fold)
        expected = [(instant, note) for instant, note in all_expected if instant >= begin][: 2 * TIMES]
        assert times == expected, f"{query}: {times}, but the clocks say {expected}; seed {seed}"
        for _, note in times:
            compared[note] += 1
    assert min(compared.values()) > COUNT // 25, compared
    print(f"{sum(compared.values())} times of {COUNT} expressions about changes of the clocks are right: {compared}")


def main():
    api = sys.argv[1].rstrip("/")
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20261129
    source = random.Random(seed)
    compare_with_croniter(api, source, seed)
    compare_about_changes(api, source, seed)


if __name__ == "__main__":
    main()
