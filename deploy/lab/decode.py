# All images of a directory as one JSON object on stdout: name to what `crit decode` says of it. Raw images (pages) and
# godwit's own manifest are left out; what cannot be decoded stands there as a text. Run by `lab decode`.
import json
import os
import sys

import pycriu

RAW = ("pages-", "godwit-manifest", "ifaddr-", "route-", "route6-", "rule-", "iptables-", "ip6tables-", "nftables-", "tmpfs-")

decoded = {}
for name in sorted(os.listdir(sys.argv[1])):
    if not (name.endswith(".img") or name.startswith("stats-")) or name.startswith(RAW):
        continue
    try:
        with open(os.path.join(sys.argv[1], name), "rb") as image:
            decoded[name] = pycriu.images.load(image, False, False)
    except Exception as error:
        decoded[name] = f"cannot be decoded: {error!r}"
json.dump(decoded, sys.stdout)
