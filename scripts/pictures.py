#!/usr/bin/env python3
"""Writes a corpus of pictures with the pixels that Pillow reads from them, for tests/pictures.rs to compare with.

    scripts/pictures.py FOLDER

Beside each picture NAME lies NAME.raw: H x W x C bytes. cases.txt has a line for each:
NAME H W C SIZE FIT RESIZE MAX MEAN, where SIZE is the --image-size of the case (HxW, or - for none), and MAX and MEAN are the
largest and the mean absolute difference that are allowed.
"""
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

folder = Path(sys.argv[1])
rng = np.random.default_rng(7)
cases = []


def photo(h, w):
    """Smooth noise of all scales under discs with sharp edges: as hard for a JPEG as a photograph is."""
    out = np.zeros((h, w, 3))
    side = 2
    while side < max(h, w):
        small = rng.normal(size=(min(side, h), min(side, w), 3)).astype(np.float32)
        # Grey varies more than colour.
        small = small.mean(2, keepdims=True) * 1.5 + small * 0.5
        layer = [np.asarray(Image.fromarray(small[..., c]).resize((w, h), Image.BICUBIC)) for c in range(3)]
        out += 45 / side**0.6 * np.stack(layer, 2)
        side *= 2
    out += 128
    y, x = np.mgrid[:h, :w]
    for _ in range(12):
        cy, cx, r = rng.uniform(0, h), rng.uniform(0, w), rng.uniform(0.02, 0.15) * max(h, w)
        out[(y - cy) ** 2 + (x - cx) ** 2 < r * r] += rng.uniform(-80, 80, 3)
    return Image.fromarray(out.clip(0, 255).astype(np.uint8))


def put(name, data, reference, size="-", fit="crop", resize="lanczos", most=0, mean=0.0):
    (folder / name).write_bytes(data)
    pixels = np.asarray(reference)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    (folder / f"{name}.raw").write_bytes(pixels.tobytes())
    h, w, c = pixels.shape
    cases.append(f"{name} {h} {w} {c} {size} {fit} {resize} {most} {mean}")


def saved(picture, kind, **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def read(data):
    return Image.open(io.BytesIO(data))


def tagged(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


# JPEG at full size: every sampling, coding and size up to two MCUs and beyond, bit for bit.
for h, w in [(1, 1), (7, 9), (8, 8), (16, 17), (33, 30), (61, 83), (240, 320)]:
    picture = photo(h, w)
    for sampling in [0, 1, 2]:
        for progressive in [False, True]:
            data = saved(picture, "JPEG", quality=90, subsampling=sampling, progressive=progressive)
            put(f"s{sampling}{'p' if progressive else 'b'}-{h}x{w}.jpg", data, read(data).convert("RGB"))
    data = saved(picture, "JPEG", quality=75, subsampling="4:1:1")
    put(f"s411-{h}x{w}.jpg", data, read(data).convert("RGB"))
    data = saved(picture.convert("L"), "JPEG", quality=80, optimize=True)
    put(f"grey-{h}x{w}.jpg", data, read(data))
    data = saved(picture, "JPEG", quality=30, restart_marker_blocks=2)
    put(f"restart-{h}x{w}.jpg", data, read(data).convert("RGB"))
    data = saved(picture, "JPEG", quality=100, subsampling=0, restart_marker_rows=1, progressive=True)
    put(f"restart-progressive-{h}x{w}.jpg", data, read(data).convert("RGB"))
picture = photo(61, 83)
data = saved(picture.convert("CMYK"), "JPEG", quality=90)
put("cmyk.jpg", data, read(data).convert("RGB"), most=1, mean=0.5)
data = saved(picture, "JPEG", quality=90, keep_rgb=True)
put("rgb.jpg", data, read(data).convert("RGB"))

# Orientation, from every place.
flag = photo(24, 40)
for orientation in range(1, 9):
    exif = tagged(orientation)
    turned = lambda data: ImageOps.exif_transpose(read(data)).convert("RGB")
    data = saved(flag, "JPEG", exif=exif)
    put(f"turned{orientation}.jpg", data, turned(data))
    data = saved(flag, "PNG", exif=exif)
    put(f"turned{orientation}.png", data, turned(data))
    # Pillow writes the chunk before the pixels; here it stands after them.
    at, idat, end = data.index(b"eXIf") - 4, data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    moved = data[:at] + data[idat:end] + data[at:idat] + data[end:]
    put(f"turned{orientation}-late.png", moved, turned(data))
    for name, block in [("", exif.tobytes()), ("-bare", exif.tobytes()[6:])]:
        data = saved(flag, "WEBP", lossless=True, exif=block)
        put(f"turned{orientation}{name}.webp", data, turned(data))
    data = saved(flag, "TIFF", exif=exif)
    put(f"turned{orientation}.tiff", data, turned(data))

# Colour profiles: a red-green swap, an inversion, a gamma, by way of profiles whose meaning Pillow's littleCMS knows.
srgb = ImageCms.createProfile("sRGB")


def profiled(picture, profile, kind, most, mean, **options):
    data = saved(picture, kind, icc_profile=profile, **options)
    stored = read(data)
    target = "RGB" if stored.mode != "L" else "L"
    if target == "L":  # littleCMS gives grey as a colour
        want = ImageCms.profileToProfile(stored, io.BytesIO(profile), srgb, outputMode="RGB").getchannel(1)
    else:
        want = ImageCms.profileToProfile(stored, io.BytesIO(profile), srgb, outputMode="RGB")
    put(f"profile{len(cases)}.{kind.lower()}", data, want, most=most, mean=mean)


def tag(kind, data):
    return kind + bytes(4) + data


def xyz(values):
    return tag(b"XYZ ", b"".join(int(round(v * 65536)).to_bytes(4, "big", signed=True) for v in values))


def profile_of(space, tags):
    """An ICC profile (version 2) for a display of these tags."""
    body, table, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        data += bytes(-len(data) % 4)
        table += name + at.to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body, at = body + data, at + len(data)
    head = bytearray(128)
    head[0:4] = at.to_bytes(4, "big")
    head[8:24] = bytes([2, 0x10, 0, 0]) + b"mntr" + space + b"XYZ "
    head[36:40] = b"acsp"
    head[68:80] = xyz([0.9642, 1, 0.8249])[8:]
    return bytes(head) + len(tags).to_bytes(4, "big") + table + body


def curve(gamma):
    return tag(b"curv", (1).to_bytes(4, "big") + int(round(gamma * 256)).to_bytes(2, "big"))


white = (b"wtpt", xyz([0.9642, 1, 0.8249]))
# The colorants of Display P3, of a linear sRGB, and a grey of gamma 1.
p3 = [[0.51512, 0.2412, -0.00105], [0.29198, 0.69225, 0.04189], [0.1571, 0.06657, 0.78407]]
rec709 = [[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.7141]]
for colorants, gamma in [(p3, 2.2), (rec709, 1.0), (rec709, 1.8)]:
    tags = [(name, xyz(c)) for name, c in zip([b"rXYZ", b"gXYZ", b"bXYZ"], colorants)]
    made = profile_of(b"RGB ", [white, *tags, *((n, curve(gamma)) for n in [b"rTRC", b"gTRC", b"bTRC"])])
    profiled(flag, made, "PNG", 2, 0.6)
    profiled(flag, made, "JPEG", 2, 0.6, quality=95)
# Not of gamma 1: there littleCMS is up to 7 levels off in the dark, and the conversion here is right.
made = profile_of(b"GRAY", [white, (b"kTRC", curve(1.8))])
profiled(flag.convert("L"), made, "JPEG", 2, 0.6, quality=95)
profiled(flag.convert("L"), made, "PNG", 2, 0.6)

# Other formats.
rgba = flag.convert("RGBA")
rgba.putalpha(Image.fromarray(rng.integers(0, 256, (24, 40), dtype=np.uint8)))
for kind, options in [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {"compression": "tiff_lzw"})]:
    data = saved(rgba, kind, **options)
    put(f"alpha.{kind.lower()}", data, read(data).convert("RGBA"))
for compression in ["raw", "tiff_deflate", "packbits", "jpeg"]:
    data = saved(flag, "TIFF", compression=compression)
    put(f"{compression}.tiff", data, read(data).convert("RGB"), most=0 if compression != "jpeg" else 3, mean=0.5)
data = saved(flag.convert("L"), "TIFF")
put("grey.tiff", data, read(data))

# Sizes: Pillow's resize of the part that covers or all of it, from a picture that is not reduced.
filters = {"lanczos": Image.LANCZOS, "bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR, "box": Image.BOX}


def scaled(picture, h, w, fit, resize):
    width, height = picture.size
    box = (0, 0, width, height)
    if fit == "crop":
        cut = (min(width, height * w / h), min(height, width * h / w))
        left, top = (width - cut[0]) / 2, (height - cut[1]) / 2
        box = (left, top, left + cut[0], top + cut[1])
    if fit == "pad":
        inside = ImageOps.contain(picture, (w, h), filters[resize])
        out = Image.new(picture.mode, (w, h))
        out.paste(inside, ((w - inside.width) // 2, (h - inside.height) // 2))
        return out
    return picture.resize((w, h), filters[resize], box)


for number, (h, w) in enumerate([(16, 16), (20, 31), (64, 48), (300, 200)]):
    for fit in ["crop", "pad", "stretch"]:
        for resize in filters:
            if (fit, resize) == ("crop", "box"):
                continue  # where its edge lies on a pixel, Pillow's edge is one of 32-bit floats
            picture = photo(97, 150)
            data = saved(picture, "PNG")
            put(f"size{len(cases)}.png", data, scaled(picture, h, w, fit, resize), f"{h}x{w}", fit, resize, 1, 0.15)
picture = rgba.resize((160, 96))
data = saved(picture, "PNG")
# Where alpha is small, one level of a colour times its alpha is several of the colour.
put("size-alpha.png", data, scaled(picture, 24, 24, "crop", "lanczos"), "24x24", "crop", "lanczos", 8, 0.05)

# Large JPEG files, which are decoded at a part of their size: against the same filter on all of it.
for h, w in [(480, 640), (1200, 1601)]:
    picture = photo(h, w)
    for sampling in [0, 1, 2]:
        for progressive in [False, True]:
            data = saved(picture, "JPEG", quality=88, subsampling=sampling, progressive=progressive)
            for side in [32, 64, 128]:
                want = scaled(read(data).convert("RGB"), side, side, "crop", "lanczos")
                name = f"large{sampling}{'p' if progressive else 'b'}-{h}-{side}.jpg"
                put(name, data, want, f"{side}x{side}", "crop", "lanczos", 8, 0.75)

(folder / "cases.txt").write_text("\n".join(cases) + "\n")
