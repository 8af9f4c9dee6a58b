#!/usr/bin/env python3
# Tells the rack that this system runs, once, at its first boot. The addresses carry a secret: this file is root's alone,
# and nothing of it appears in a process's arguments or environment.
import os
import random
import sys
import time
import urllib.error
import urllib.request

URLS = @URLS@

CALL = 5  # seconds that one call may take
PATIENCE = 9 * 60  # seconds that all of them may take; the rack gives up after 10 minutes
LONGEST_PAUSE = 15  # seconds

# The rack is on this machine's own network: no proxy, and a redirection is not its answer.
class Straight(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Straight)


def call(url):
    """Returns the status, or None when there was no answer."""
    try:
        request = urllib.request.Request(url, data=b"", method="POST")
        with opener.open(request, timeout=CALL) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except Exception:  # what the network and http.client raise has no common type
        return None


def once(urls):
    """Calls each; True when one has taken it. Those that do not know the token leave the list."""
    for url in list(urls):
        status = call(url)
        if status == 204:
            return True
        if status == 404:
            urls.remove(url)
    return False


def keep_on(urls):
    until, pause = time.monotonic() + PATIENCE, 1
    while urls and time.monotonic() < until:
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_PAUSE)
        if once(urls):
            return


if not once(URLS) and URLS:
    # The user's own scripts come after this one and must not wait for a rack that cannot be reached.
    if os.fork() == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        keep_on(URLS)
        os._exit(0)
    print("bloomery: no coordinator answers yet, trying on in the background", file=sys.stderr)
