"""Asking a server: one request, what can go wrong with it, and when to ask again.

Everything that can happen between here and a server becomes a `Failure`, which knows whether the
next attempt may go better: a lost connection may come back, a page that does not exist will not.
A server that is out of breath is asked again, after pauses that double, or that it asks for.
"""

import contextlib
import email.utils
import http.client
import re
import ssl
import time
import urllib.error
import urllib.request

TIMEOUT = 30.0  # seconds without a byte
PAUSES = (1, 2, 4, 8, 16, 32)  # seconds before another attempt
FIRST_PAUSES = 2  # as many of them, where no server has been reached yet: perhaps none can be
LONGEST_PAUSE = 120  # a server that asks for more is asked another day
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP's words for: try again
sleep = time.sleep


class Failure(Exception):
    """An attempt that failed.

    Args:    reason; passing, whether another attempt may succeed; pause, the seconds that the
             server asked for; status of HTTP; reached, whether there was a server.
    """

    def __init__(self, reason, passing=True, pause=0.0, status=None, reached=True):
        super().__init__(reason)
        self.passing = passing
        self.pause = pause
        self.status = status
        self.reached = reached


def open_url(url, headers):
    """Ask a server for a file or a part of it, through the proxies of the environment.

    Args:    url; headers of the request.
    Returns: the response, of status 200 or 206; it must be closed.
    Raises:  Failure.
    """
    standard = {"User-Agent": "npgpt", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers={**standard, **headers})
    with network_errors():
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    if response.status not in (200, 206):
        response.close()
        raise Failure(f"the server answered {response.status} {response.reason}", passing=False)
    return response


@contextlib.contextmanager
def network_errors():
    """Turn what can go wrong on the way into a Failure that says whether it may pass.

    Raises:  Failure in place of OSError, HTTPException and what they have for children.
    """
    try:
        yield
    except urllib.error.HTTPError as error:
        with error:
            pause = _seconds(error.headers.get("Retry-After"))
        too_long = pause > LONGEST_PAUSE
        late = f", and asks for a pause of {pause:.0f} s" if too_long else ""
        reason = f"the server answered {_words(f'{error.code} {error.reason}')}{late}"
        passing = error.code in PASSING and not too_long
        raise Failure(reason, passing, pause, error.code) from None
    except urllib.error.URLError as error:
        passing = not isinstance(error.reason, ssl.SSLCertVerificationError)
        reason = f"no connection: {_words(error.reason)}"
        raise Failure(reason, passing, reached=False) from None
    except TimeoutError:
        raise Failure(f"the server was silent for {TIMEOUT:.0f} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"the connection broke off: {_words(error)}") from None


def with_retries(attempt, log, progress=lambda: 0):
    """Call a function until it succeeds, with pauses that double, some times in vain at most.

    Args:    attempt, a function that may raise Failure; log; progress, a function whose number
             grows when something has come: then the attempts are counted anew.
    Returns: what attempt returned.
    Raises:  Failure, the last one.
    """
    tries, before = 0, progress()
    while True:
        try:
            return attempt()
        except Failure as failure:
            now = progress()
            if now > before:
                tries, before = 0, now
            most = len(PAUSES) if failure.reached or now else FIRST_PAUSES
            if not failure.passing or tries == most:
                raise
            pause = max(PAUSES[tries], failure.pause)
            tries += 1
            log(f"{failure}; trying again in {pause:.0f} s")
            sleep(pause)


def content_range(response):
    """What part of a file an answer of status 206 holds.

    Returns: its first byte's place; the length of the whole file, None if not said.
    Raises:  Failure if it does not say what it should.
    """
    text = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text.strip())
    if not found:
        raise Failure(f"the server does not say which part it sent, but {text!r}", passing=False)
    return int(found[1]), number(found[2])


def number(text):
    """A header's whole number, or None."""
    return int(text) if text and text.isdecimal() else None


def _seconds(retry_after):
    """The pause that a Retry-After asks for: seconds, or a date."""
    if number(retry_after) is not None:
        return float(retry_after)
    with contextlib.suppress(TypeError, ValueError):
        until = email.utils.parsedate_to_datetime(retry_after)
        return max(0.0, until.timestamp() - time.time())
    return 0.0


def _words(error):
    """What an error says, on one line."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return said.strip().partition("\n")[0]
