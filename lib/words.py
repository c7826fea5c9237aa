"""Words for benchmark prompts.

Owns a list that needs no download. Prompts must differ: a model server that caches what it has seen would
answer repeated ones faster than it answers real traffic.
"""

from __future__ import annotations

import random

__all__ = ["WORDS", "some_words"]

_TEXT = """
    acorn amber anchor apple apron arrow autumn bakery balcony barley basket beacon bicycle birch blanket
    blossom bottle branch bridge bronze bucket butter button cabin candle canyon carpet castle cedar cellar
    chalk cherry chimney circle cloud clover coast coffee compass copper coral corner cotton cradle crystal
    curtain dancer desert diamond dinner dragon drawer eagle early earth easel echo ember engine evening
    fabric falcon feather fennel fiddle forest fountain fox garden garlic ginger glacier glass glove grain
    granite gravel guitar hammer harbor harvest hazel hedge hill honey horizon house island ivory jacket
    jasmine jungle kettle kitchen ladder lagoon lantern laurel lemon letter lily linen lizard lobster loom
    maple marble market meadow melon mirror mitten moon mountain museum nectar needle nest night north oak
    oasis ocean olive orange orchard otter oven owl paddle palace paper parrot pebble pepper piano picnic
    pillow planet plum pocket pond poppy potter prairie puzzle quarry quilt rabbit railway rain raven
    ribbon river robin rocket rose saddle saffron salmon sand scarf season shadow shell silver sister slate
    snow spice spiral spring square star stone storm story stream sugar summer sunset swallow table tailor
    teapot temple thimble thunder ticket timber tower trumpet tulip tunnel turnip umbrella valley vanilla
    velvet village violin wagon walnut water weather whistle willow window winter wolf wood yarn yellow
"""
WORDS = tuple(_TEXT.split())


def some_words(count: int) -> str:
    """`count` words picked at random, with spaces between."""
    return " ".join(random.choices(WORDS, k=count))
