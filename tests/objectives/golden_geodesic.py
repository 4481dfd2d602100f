"""Golden scalars of the geodesic mixup losses, from the formulas in plain Python. To make them anew:

python tests/objectives/golden_geodesic.py > tests/objectives/golden_geodesic.json
"""

import json
import math

IMAGE = [[0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [-0.48, 0.64, 0.6], [2 / 3, -1 / 3, 2 / 3]]
TEXT = [[0.6, 0.64, 0.48], [0.0, 0.8, -0.6], [-1 / 3, 2 / 3, 2 / 3], [0.36, 0.48, 0.8]]
SHARE, TAU1, TAU2 = 0.3, 0.01, 0.07


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def mix(a, b, s):
    angle = math.acos(dot(a, b))
    return [
        math.sin(s * angle) / math.sin(angle) * x + math.sin((1 - s) * angle) / math.sin(angle) * y
        for x, y in zip(a, b, strict=True)
    ]


def cross_entropy(logits, target):
    """Mean over rows of −Σ target · log softmax(logits)."""
    total = []
    for row, wanted in zip(logits, target, strict=True):
        top = max(row)
        log_sum = top + math.log(math.fsum(math.exp(z - top) for z in row))
        total.append(-math.fsum(t * (z - log_sum) for t, z in zip(wanted, row, strict=True)))
    return math.fsum(total) / len(total)


def transpose(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def scores(a, b, tau):
    return [[dot(x, y) / tau for y in b] for x in a]


def both_ways(logits, target):
    return (cross_entropy(logits, target) + cross_entropy(transpose(logits), transpose(target))) / 2


def m2(image, text, s, tau):
    mixed = [mix(i, t, s) for i, t in zip(image, text, strict=True)]
    total = 0.0
    for anchors, partners in ((image, text), (text, image)):
        logits = scores(anchors, mixed, tau)
        for i in range(len(anchors)):
            logits[i][i] = dot(anchors[i], partners[i]) / tau
        total += cross_entropy(logits, combined(len(image), 1, 0))
    return total


def combined(n, own, reversed_):
    return [[own * (i == j) + reversed_ * (i + j == n - 1) for j in range(n)] for i in range(n)]


def main():
    n = len(IMAGE)
    mixed_image = [mix(a, b, SHARE) for a, b in zip(IMAGE, IMAGE[::-1], strict=True)]
    mixed_text = [mix(a, b, SHARE) for a, b in zip(TEXT, TEXT[::-1], strict=True)]
    soft = combined(n, SHARE, 1 - SHARE)
    golden = {
        "image": IMAGE,
        "text": TEXT,
        "share": SHARE,
        "temperature": TAU1,
        "m2_temperature": TAU2,
        "m2": m2(IMAGE, TEXT, SHARE, TAU2),
        "v": both_ways(scores(mixed_image, TEXT, TAU1), soft),
        "l": both_ways(scores(IMAGE, mixed_text, TAU1), soft),
        "vl": both_ways(scores(mixed_image, mixed_text, TAU1), combined(n, 1, 1)),
    }
    print(json.dumps(golden, indent=2))


if __name__ == "__main__":
    main()
