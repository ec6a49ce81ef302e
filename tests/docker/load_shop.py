"""Run inside a worker of the stack: /tmp/shop becomes the bucket's pictures and the tables of the catalogue's database."""

import os

import adbc_driver_postgresql.dbapi
import pyarrow.csv as pc
import pyarrow.fs as pafs

from tasks.catalog.sources.postgresql import split_image_root
from tasks.storage import filesystem

uri, root = split_image_root(os.environ["VITRINE_CATALOG"])
fs, bucket = filesystem(root)
for name in ("images", "photos"):
    pafs.copy_files(f"/tmp/shop/{name}", f"{bucket}/{name}", destination_filesystem=fs)
with adbc_driver_postgresql.dbapi.connect(uri) as connection, connection.cursor() as cursor:
    for table in ("products", "photos"):
        cursor.adbc_ingest(table, pc.read_csv(f"/tmp/shop/{table}.csv"), mode="replace")
    connection.commit()
