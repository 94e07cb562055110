"""Runs every query of a Grafana dashboard against a Prometheus, and fails for one without data.

usage: panels.py DASHBOARD PROMETHEUS_URL
"""

import json
import math
import sys
import urllib.parse
import urllib.request

INTERVAL = "1m"


def queries(panels):
    """Yields title and query of each target, in rows too."""
    for panel in panels:
        yield from queries(panel.get("panels", []))
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def values(base, query):
    """Returns the values that a query has now."""
    url = f"{base}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url) as answer:
        result = json.load(answer)["data"]["result"]
    return [float(series["value"][1]) for series in result]


def main():
    dashboard, base = sys.argv[1:]
    with open(dashboard) as file:
        panels = json.load(file)["panels"]
    count, empty = 0, []
    for title, query in queries(panels):
        count += 1
        query = query.replace("$__rate_interval", INTERVAL)
        found = [value for value in values(base, query) if not math.isnan(value)]
        print(f"{len(found):4} series  {title}: {query}")
        if not found:
            empty.append(f"{title}: {query}")
    up = values(base, 'up{job="wrenn"}')
    if up != [1.0]:
        empty.append(f"the platform is not scraped: up is {up}")
    for query in empty:
        print(f"no data: {query}", file=sys.stderr)
    print(f"{count - len(empty)} passed, {len(empty)} failed")
    sys.exit(1 if empty or count < 40 else 0)


main()
