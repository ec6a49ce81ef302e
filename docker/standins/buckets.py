"""Makes the buckets that are named, once the object store answers; those that are there are kept."""

import sys
import time

import boto3  # noqa: TID253 (a program of a container of its own)
from botocore.exceptions import BotoCoreError, ClientError

client = boto3.client("s3")
for attempt in range(60):
    try:
        there = {b["Name"] for b in client.list_buckets()["Buckets"]}
        for name in set(sys.argv[1:]) - there:
            client.create_bucket(Bucket=name)
        break
    except (BotoCoreError, ClientError):
        if attempt == 59:
            raise
        time.sleep(1)
