"""Just enough of the safetensors format for fp32 matrices, with nothing but the standard library."""
import array
import json
import struct
import sys

assert sys.byteorder == "little"


def write(path, tensors, metadata=None):
    """tensors: name -> (shape, flat floats)."""
    header, blobs, offset = {}, [], 0
    if metadata:
        header["__metadata__"] = metadata
    for name, (shape, values) in tensors.items():
        blob = array.array("f", values).tobytes()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def read(path):
    """Returns (name -> (shape, bytes), metadata)."""
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = data[8 + length :]
    return {name: (t["shape"], body[slice(*t["data_offsets"])]) for name, t in header.items()}, metadata


def floats(blob):
    values = array.array("f")
    values.frombytes(blob)
    return list(values)
