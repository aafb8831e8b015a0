"""Compares the times of `GET /triggers/preview` with those of croniter, for random expressions.

Usage: schedules.py API_URL [SEED]     (with croniter installed)

What is left out, because croniter means something else by it:
- a `*/n` in one of the days together with a restriction of the other: croniter takes it for a restriction, and so
  demands either; for this service, croner and Vixie cron only `*` is none;
- ranges of one value, `7-7`: croniter takes them for all values;
- seconds: croniter expects them in the last field, so they are moved there;
- changes of the clocks: croniter does not distinguish times with a wildcard from fixed ones. The months of the comparison have no
  such change in these zones.
"""

import json
import random
import sys
import urllib.parse
import urllib.request
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

from croniter import croniter

COUNT = 1000
TIMES = 10
ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]


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


def main():
    api = sys.argv[1].rstrip("/")
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20261129
    source = random.Random(seed)
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


if __name__ == "__main__":
    main()
