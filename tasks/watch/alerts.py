"""Alerts: always logged, and posted to VITRINE_ALERT_URL if set."""

import logging

import httpx

from tasks.settings import Settings

log = logging.getLogger(__name__)

TIMEOUT_S = 10


def send(text: str, link: str = "") -> bool:
    """Posts {"text": …} to VITRINE_ALERT_URL (the format of chat webhooks). Returns whether it was accepted.

    Never raises: an alert that cannot be delivered must not fail what it tells about.
    """
    message = f"Vitrine: {text}" + (f" {link}" if link else "")
    log.warning("%s", message)
    url = Settings.load().alert_url
    if not url:
        return False
    try:
        httpx.post(url, json={"text": message}, timeout=TIMEOUT_S, trust_env=False).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.error("the alert could not be delivered: %s", type(error).__name__)
        return False
    return True
