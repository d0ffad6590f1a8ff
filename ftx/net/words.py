"""The words of pairing codes: short, easily told apart and spelled, and nothing that anybody minds to say aloud."""

_LINES = """
acorn actor agent album alley amber angel ankle apple apron arena arrow atlas attic autumn badge
bagel baker bamboo banana banjo barrel basil basket beach beacon beetle bench berry bison blanket blossom
bottle branch bread breeze brick bridge bronze broom brush bubble bucket buffalo bundle butter button cabin
cable cactus camel camera candle canoe canvas canyon carbon carpet carrot castle cedar cellar cello cement
chair chalk cherry chess circle citrus clay clock cloud clover cobalt coconut coffee comet compass copper
coral corner cotton cousin cradle crane crayon crystal cumin curtain cymbal daisy dancer denim desert diamond
dinner dolphin domino dragon drawer driver eagle easel echo elbow ember emerald engine fabric falcon feather
fender ferry fiddle finger flame flute forest fossil fountain fox galaxy garden garlic gecko ginger giraffe
glacier globe gold granite grape gravel guitar hammer hammock harbor harvest hazel helmet heron hill hockey
honey horizon hotel igloo indigo island ivory jacket jaguar jasmine jelly jungle kayak kettle kitchen kitten
koala ladder lagoon lantern laptop lemon letter lilac linen lizard lobster locket lotus magnet mango maple
marble meadow melon mirror mitten mosaic muffin museum napkin nectar needle nickel noodle nutmeg oasis ocean
olive onion orbit orchid otter oyster paddle palace panda paper parrot pasta pebble pelican pencil pepper
piano picnic pillow pilot planet plum pocket pollen poncho potato prism pumpkin puzzle quartz quilt rabbit
raisin ribbon river robin rocket saddle salad salmon sandal satin saturn scarf shell silver siren spoon
squirrel stadium sunset tulip tunnel turtle velvet violin wagon walnut willow window winter yogurt zebra zipper
"""
WORDS = tuple(_LINES.split())
