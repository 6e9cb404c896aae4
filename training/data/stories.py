"""Short children's stories from a grammar of our own, for training where there is no network and no text at hand.

``story(seed, index)`` is a pure function: the same on every machine, and any story can be had without those before it.

A story has a hero, a wish, a mishap and a mend, and what mends the mishap was introduced before it struck: a thing
carried along, a friend with a skill, or a stranger the hero was kind to. Three smaller plots stand beside that one:
learning a skill, a noise in the night, and something lost. The tables hold the sentences; the functions at the end
(`_adventure` and its like) choose among them, paragraph by paragraph, and fill in

    hero kind he him his himself     the hero, with pronouns; He and His begin a sentence
    friend fkind fhe fhim fhis       whoever helps
    elder ehe ehim ehis              a grown-up of the family, as in "her aunt"
    pal phe phim phis                a playmate
    thing the_thing a_thing color    what is wished for
    play played i_play they_play     what one does with it: infinitive, past, and as "I" and "they" would say it
    tool the_tool a_tool             what is carried along
    to at through tree water hole    the place, and what is to be found there
"""

import random
from collections.abc import Iterator, Sequence
from itertools import count
from typing import TypeVar

__all__ = ["HELPERS", "HEROES", "stories", "story"]

T = TypeVar("T")


def _words(text: str) -> list[str]:
    return text.split()


def _lines(text: str) -> list[str]:
    """One sentence or phrase to a line; a dash stands for saying nothing."""
    return ["" if line.strip() == "-" else line.strip() for line in text.strip().splitlines()]


def _beats(text: str) -> list[list[str]]:
    """Blocks between blank lines: a story takes one line of each, in their order."""
    return [_lines(block) for block in text.strip().split("\n\n")]


def _rows(text: str) -> list[list[str]]:
    """Lines of cells."""
    return [line.split(" | ") for line in _lines(text)]


def _table(text: str) -> dict[str, list[list[str]]]:
    """Lines of cells, gathered by the first of them."""
    table: dict[str, list[list[str]]] = {}
    for key, *cells in _rows(text):
        table.setdefault(key, []).append(cells)
    return table


# The heroes: name | she or he | what | where. As in a series of books they are always the same, and few: a small
# model learns to tell names apart when each goes with something of its own, and comes often. For the same reason no
# paragraph begins with a name: after a blank line it is another token than after a space.
_HEROES = _rows("""
    Lily | she | girl | in a small house by the river
    Tom | he | boy | in a small house by the river
    Anna | she | girl | in a white house on a hill
    Jack | he | boy | in a white house on a hill
    Clara | she | girl | in a tiny village near the sea
    Finn | he | boy | in a tiny village near the sea
    Lucy | she | girl | on a farm with many hens
    Noah | he | boy | on a farm with many hens
    Sara | she | girl | in a tall house at the end of the street
    Luke | he | boy | in a cottage at the edge of the woods
    Emma | she | girl | in a cottage at the edge of the woods
    Adam | he | boy | in a town with red roofs
    Nora | she | girl | above a little bakery
    Dan | he | boy | above a little bakery
    Rosa | she | rabbit | in a cozy den under a hill
    Ben | he | bear | in a little cave behind a waterfall
    Mia | she | fox | at the edge of the forest
    Sam | he | puppy | in a round house with a green door
    Nina | she | lamb | in a valley full of flowers
    Tim | he | pig | in a warm house made of sticks
    Ella | she | panda | near a quiet pond
    Leo | he | hedgehog | beside an old stone wall
    Kate | she | kitten | in a round house with a green door
    Max | he | calf | in a valley full of flowers
""")
# Who helps: they too are always the same.
_HELPERS = dict(
    _rows("""
    baby bat | Pip
    baby owl | Bean
    badger | Bramble
    bat | Misty
    bear | Barley
    beaver | Biscuit
    bee | Honey
    cat | Clover
    crow | Pepper
    dog | Dash
    donkey | Dusty
    duck | Daisy
    elephant | Pebble
    firefly | Sunny
    frog | Fern
    giraffe | Ginger
    goat | Nutmeg
    goose | Goldie
    hedgehog | Hazel
    kitten | Cocoa
    lizard | Rusty
    mole | Moss
    monkey | Maple
    mouse | Acorn
    otter | Olive
    owl | Willow
    parrot | Poppy
    pony | Patch
    puppy | Button
    robin | Ruby
    silkworm | Satin
    sparrow | Sky
    spider | Dot
    squirrel | Chip
    stork | Cloud
    swan | Violet
    turtle | Tully
    wren | Ivy
""")
)
HEROES = tuple(name for name, *_ in _HEROES)
"""The names of heroes and their playmates."""
HELPERS = tuple(_HELPERS.values())
"""The names of helpers."""

_WISE_ANIMALS = _words("""
    goat turtle owl bear badger crow donkey cat
""")
_TRAITS = _words("""
    little kind brave shy clever curious cheerful quiet merry gentle busy young small lively polite
""")
_WEATHERS = _words("""
    sunny windy warm bright cloudy fresh cool quiet fine lovely
""")
_COLORS = _words("""
    red blue green yellow purple orange white golden silver striped spotted pink brown
""")
_ELDERS = _rows("""
    mother | she
    grandmother | she
    aunt | she
    father | he
    grandfather | he
    uncle | he
""")
_LIKES = _lines("""
    to sing
    to run in the rain
    to look at the clouds
    to listen to stories
    to pick flowers
    to count the stars
    to jump in puddles
    to eat warm bread
    to dance
    to watch the birds
    to tell jokes
    to paint
    to roll in the grass
    to ask questions
""")
_CHORES = _lines("""
    feed the hens
    sweep the floor
    water the plants
    pick apples
    wash the cups
    carry wood
    bake bread
    wash the windows
    pull the weeds
""")

# The places, and what things get caught in there: to | at | through | tree | water | hole.
_PLACES = _rows("""
    to the park | in the park | through the park | the tall oak tree | the duck pond | a gap under the old wall
    to the meadow | in the meadow | across the meadow | the old apple tree | the little stream | a deep hole
    to the forest | in the forest | through the forest | a tall pine tree | the cold stream | a hole between two roots
    to the beach | on the beach | along the beach | a tall palm tree | the sea | a gap under a rock
    to the farm | at the farm | past the farm | the pear tree by the barn | the pond | a gap under the barn
    to the garden | in the garden | through the garden | the cherry tree | the fish pond | a hole in the ground
    to the hill | on the hill | over the hill | the lonely pine tree | the lake | a gap between two stones
    to the river | by the river | along the river | the old willow tree | the river | a hole in the bank
    to the orchard | in the orchard | through the orchard | the plum tree | the brook | a gap under the fence
    to the valley | in the valley | down the valley | the giant fir tree | the lake | a hole under a rock
    to the playground | at the playground | past the playground | the big maple tree | the pond | a hole under the slide
    to the bridge | by the bridge | over the bridge | the crooked birch tree | the river | a hole by the path
""")

# Things: name | what one does with it | and did | what may befall it | gift: fit for a present, small: soon mislaid.
_THINGS = _rows("""
    kite | fly it over the fields | flew it over the fields | blown torn rain | gift
    ball | bounce it up and down | bounced it up and down | tossed floated rolled | small
    balloon | watch it dance in the wind | watched it dance in the wind | blown | -
    hat | show it to everyone | showed it to everyone | blown floated taken | gift small
    toy boat | pretend to be a sailor | pretended to be a sailor | floated cracked | small
    drum | beat it like a marching band | beat it like a marching band | cracked floated | -
    doll | rock it to sleep | rocked it to sleep | tossed torn floated taken | gift small
    teddy bear | hug it tight | hugged it tight | tossed torn floated | small
    wagon | pull it along the path | pulled it along the path | mud cracked | -
    bell | ring it loud and clear | rang it loud and clear | sank rolled taken | gift small
    picture book | look at all the pictures | looked at all the pictures | rain torn | gift small
    scarf | wrap it around {his} neck | wrapped it around {his} neck | blown torn floated taken | gift small
    glass marble | roll it over the stones | rolled it over the stones | sank rolled taken | small
    lucky coin | flip it and catch it | flipped it and caught it | sank rolled taken | small
    paper plane | throw it as far as {he} could | threw it as far as {he} could | tossed blown rain | -
    puppet | make it talk and dance | made it talk and dance | torn cracked floated taken | gift small
    toy train | push it and say choo choo | pushed it and said choo choo | cracked sank | small
    toy car | race it over the stones | raced it over the stones | sank rolled cracked | small
    flute | play a sweet song on it | played a sweet song on it | sank cracked rolled | gift small
    paper crown | play at being royal | played at being royal | blown torn rain taken | gift
    cape | run with it like a hero | ran with it like a hero | torn blown floated | gift
    flag | wave it in the wind | waved it in the wind | torn blown | -
    pinwheel | watch it spin and spin | watched it spin and spin | blown torn | gift
    music box | listen to its tune | listened to its tune | cracked sank | gift
    spinning top | make it spin and hum | made it spin and hum | rolled sank cracked | small
    yo-yo | make it go up and down | made it go up and down | tossed sank | small
    scooter | ride it very fast | rode it very fast | mud cracked | -
    cart | carry flowers in it | carried flowers in it | mud cracked | -
    ribbon | twirl it in big circles | twirled it in big circles | blown torn taken floated | gift small
    feather | tickle {his} nose with it | tickled {his} nose with it | blown floated taken | gift small
    sea shell | hear the sea in it | heard the sea in it | rolled sank | gift small
    necklace | wear it and feel grand | wore it and felt grand | sank taken | gift small
    ring | see it shine in the sun | saw it shine in the sun | sank rolled taken | gift small
    tea cup | have a tea party | had a tea party | cracked sank | gift
    painting | look at its colors | looked at its colors | blown rain torn | gift
    wooden horse | gallop it over the grass | galloped it over the grass | cracked mud floated | small
    toy robot | make it march | made it march | cracked sank | small
    blanket | have a picnic on it | had a picnic on it | torn blown floated | gift
    basket | fill it with berries | filled it with berries | floated taken | gift
    bicycle | ride it down the road | rode it down the road | mud cracked | -
    spoon | eat soup with it | ate soup with it | sank rolled taken | gift small
    lantern | carry it like a little moon | carried it like a little moon | cracked sank | gift
    tambourine | shake it and dance | shook it and danced | cracked rolled floated | gift
    magic stone | make a wish on it | made a wish on it | sank rolled taken | small
""")

# What befalls things, and the remedy that it calls for; the dark may befall anyone.
_REMEDY_OF = {
    "blown": "high",
    "tossed": "high",
    "floated": "floating",
    "sank": "sunken",
    "rolled": "in a hole",
    "torn": "torn",
    "cracked": "broken",
    "mud": "stuck",
    "taken": "in a nest",
    "rain": "wet",
    "dark": "lost",
}
_MISHAPS = _table("""
    blown | Suddenly a strong wind came. It blew {the_thing} high into {tree}.
    blown | Whoosh! The wind took {the_thing} and carried it to the top of {tree}.
    blown | Then the wind pulled {the_thing} away, and it got caught in {tree}.
    tossed | All at once, {the_thing} flew up and up. It did not come down. It was stuck in {tree}!
    tossed | {The_thing} went too high and landed in {tree}. There it stayed.
    tossed | Up went {the_thing}, and it got stuck between the branches of {tree}.
    floated | Then {hero} tripped, and {the_thing} fell into {water}. It floated far away.
    floated | Splash! {The_thing} landed in {water} and drifted away from {him}.
    floated | Oh no! {hero} slipped, and {the_thing} dropped into {water}. It went farther and farther away.
    sank | Then {the_thing} slipped out of {his} hands. Plop! It sank to the bottom of {water}.
    sank | All at once, {hero} slipped, and {the_thing} fell into {water} and sank like a stone.
    sank | Oh dear! {The_thing} dropped into {water}, and soon {he} could not see it any more.
    rolled | Then {the_thing} rolled away, faster and faster, right into {hole}.
    rolled | Suddenly {hero} tripped, and {the_thing} fell into {hole}. It was gone!
    rolled | Bump, bump, bump! {The_thing} rolled down and vanished into {hole}.
    torn | Then {the_thing} got caught on a thorn bush. Rip! Now it had a big hole.
    torn | Then {hero} stumbled, and {the_thing} was torn on a sharp branch.
    torn | Rip! {The_thing} caught on an old nail and tore in two.
    cracked | Then {hero} stumbled over a root, and {the_thing} hit a stone. Crack! It broke in two.
    cracked | All at once, {the_thing} fell to the ground, and a big piece broke off.
    cracked | Crash! {The_thing} bumped against a rock and broke.
    mud | Then {the_thing} ran into deep mud and got stuck.
    mud | The ground was wet, and {the_thing} sank into the mud. It did not move at all.
    mud | Squish! {The_thing} rolled into a muddy ditch and stayed there.
    taken | Suddenly a magpie came down, picked up {the_thing} and flew to its nest in {tree}.
    taken | Then a cheeky crow grabbed {the_thing} and took it to its nest in {tree}.
    taken | For only a moment, {hero} put {the_thing} down. A black bird took it and flew up into {tree}!
    rain | Suddenly big dark clouds came, and it began to rain. The rain would ruin {the_thing}!
    rain | Then thunder rolled, and heavy drops began to fall. {The_thing} must not get wet!
    rain | The sky turned gray, and the rain came down in buckets. {The_thing} was getting wet!
    dark | But {hero} did not see that the sun was going down. Soon it was dark, and {he} could not find the path.
    dark | Then a thick fog came up. {hero} could not see the way any more.
    dark | The sun went down, and everything looked different. {hero} was lost!
""")

# Remedy | what is tried first, in vain.
_IN_VAIN = _table("""
    high | {He} jumped and jumped, but {he} could not reach it.
    high | {He} tried to climb up, but the branches were too high.
    high | {He} shook the trunk with all {his} might, but nothing fell down.
    floating | {He} reached out, but {his} arms were too short.
    floating | {He} threw little stones behind it, but it only went farther away.
    floating | {He} wanted to go after it, but the water was too deep and too cold.
    sunken | {He} put {his} arm in the water, but it was too deep.
    sunken | {He} looked and looked, but the water was dark.
    sunken | {He} waited for a long time, but it did not come up again.
    in a hole | {He} put {his} arm in, but {he} could not reach the end.
    in a hole | {He} poked inside with a twig, but the twig broke.
    in a hole | {He} looked inside, but it was too narrow for {him}.
    torn | {He} tried to hold the parts together, but they fell apart again.
    torn | {He} tried to fix it with a leaf, but the leaf did not stay.
    torn | {He} tied a knot, but the knot came loose at once.
    broken | {He} pushed the pieces together, but they did not stay.
    broken | {He} tried to fix it with mud, but the mud was too soft.
    broken | {He} tried to tie it with grass, but the grass was too weak.
    stuck | {He} pulled and pulled, but it was too heavy.
    stuck | {He} pushed as hard as {he} could, and fell flat on {his} face in the mud.
    stuck | {He} tried to lift it, but it only sank deeper.
    in a nest | "Please give it back!" called {hero}, but the bird only laughed.
    in a nest | {He} clapped {his} hands, but the bird did not care.
    in a nest | {He} ran after the bird, but it was much too fast.
    wet | {He} held a leaf over it, but the leaf was too small.
    wet | {He} tried to run home, but home was too far away.
    wet | {He} looked for a dry place, but there was none.
    lost | {He} went left, and then {he} went right, but every path looked the same.
    lost | {He} called out, but nobody answered.
    lost | {He} walked in a circle and came back to the same stone.
""")

# Remedy | something to carry along | what is done with it.
_TOOLS = _table("""
    high | long rope | {He} threw the rope over a branch and pulled. It bent down, and {he} got {the_thing} back.
    high | walking stick | {He} stood on a big stone and poked with the walking stick until {the_thing} came down.
    high | fishing rod | {He} swung the fishing rod, and its hook caught {the_thing}. Slowly {he} pulled it down.
    floating | fishing net | {He} leaned over the water with the fishing net and scooped {the_thing} out.
    floating | fishing rod | {He} threw out the line. The hook caught {the_thing}, and {he} pulled it in.
    floating | long rope | {He} made a loop in the rope, threw it around {the_thing} and pulled it back to dry land.
    sunken | fishing net | {He} put the fishing net deep into the water, and up came {the_thing}, wet and shiny.
    sunken | fishing rod | {He} let the hook of the fishing rod sink to the bottom, and soon {he} pulled up {the_thing}.
    sunken | small bucket | {He} let the bucket down and pulled it up again. At the third try, {the_thing} was in it.
    in a hole | little spade | {He} dug with the spade until the hole was wide, and there was {the_thing}.
    in a hole | pot of honey | {He} dipped a stick in the honey and put it in. {The_thing} stuck to it and came out.
    in a hole | fishing rod | {He} let the hook of the fishing rod down, and up came {the_thing}.
    torn | needle and thread | With small stitches, {he} sewed {the_thing} until it was whole again.
    torn | roll of tape | {He} put tape on the torn place, front and back, and {the_thing} was whole again.
    torn | box of patches | {He} chose a patch like a little star and sewed it on. {The_thing} looked even prettier.
    broken | pot of glue | {He} put glue on the pieces, pressed hard and counted to fifty. {The_thing} was whole again.
    broken | ball of string | {He} wound the string around the pieces and tied it. {The_thing} was as strong as before.
    broken | roll of tape | {He} put tape around the broken place, again and again, until {the_thing} held together.
    stuck | long rope | {He} tied the rope to {the_thing}, put it around a tree and pulled. Pop! It was free.
    stuck | little spade | {He} dug the mud away with the spade, bit by bit, until {the_thing} was free.
    stuck | bag of straw | {He} put the straw on the mud in front of {the_thing}. Now it could roll out again.
    in a nest | silver button | {He} held up the button. It shone so much that the bird took it and dropped {the_thing}.
    in a nest | bag of nuts | {He} put the nuts on a stone. The bird came down to eat, and {he} got {the_thing} back.
    in a nest | slice of cake | {He} held up the cake. The bird was hungry. It took the cake and let {the_thing} fall.
    wet | big umbrella | {He} opened the umbrella and held it over {the_thing} until the rain stopped.
    wet | warm coat | {He} put {the_thing} under the coat and closed every button. Not one drop came in.
    wet | tin box | {He} laid {the_thing} in the tin box and closed the lid. The rain could only go tap, tap, tap.
    lost | small lamp | {He} lit the lamp, and a warm light fell on the path. Step by step, {he} found the right way.
    lost | bag of white pebbles | {He} had dropped a pebble at every turn. Now {he} followed them to the right path.
    lost | tin whistle | {He} blew the whistle three times. A farmer heard it and showed {him} the right path.
""")

# Remedy | a helper | the skill | how it is used.
_FRIENDS = _table("""
    high | squirrel | climb any tree | {friend} ran up the trunk and pushed {the_thing} down to {him}.
    high | robin | fly to the top of any tree | {friend} flew up, pulled with {fhis} beak, and {the_thing} came down.
    high | giraffe | reach higher than anyone | {friend} stretched {fhis} long neck and took {the_thing} down.
    high | monkey | swing from branch to branch | {friend} swung up and brought {the_thing} back.
    floating | duck | swim all day long | {friend} swam after {the_thing} and pushed it back with {fhis} beak.
    floating | otter | swim faster than a fish | {friend} jumped in and came back with {the_thing} on {fhis} belly.
    floating | swan | swim without a sound | {friend} glided over the water and brought {the_thing} back.
    floating | turtle | carry things over the water | {friend} swam out and came back with {the_thing} on {fhis} shell.
    sunken | frog | dive deeper than anyone | {friend} jumped in, and soon {fhe} came up with {the_thing}.
    sunken | otter | hold {fhis} breath for a long time | {friend} dived down and found {the_thing} under a stone.
    sunken | turtle | walk on the bottom of a lake | {friend} came back with {the_thing} in {fhis} mouth.
    in a hole | mouse | squeeze into the smallest hole | {friend} slipped inside and pushed {the_thing} out.
    in a hole | mole | dig a tunnel in no time | {friend} dug and dug, and soon {fhe} pushed {the_thing} out.
    in a hole | lizard | creep into any crack | {friend} crept inside and pulled {the_thing} out with {fhis} tail.
    torn | spider | spin the strongest thread | {friend} closed the hole with {fhis} thread, stitch by stitch.
    torn | wren | weave like nobody else | {friend} wove grass through the torn place, in and out.
    torn | silkworm | make the finest silk | {friend} mended {the_thing} with silk, and it looked like new.
    broken | bee | make wax that sticks to anything | {friend} put wax on it, and {the_thing} was whole again.
    broken | beaver | build and fix everything | {friend} worked all day, and {the_thing} was whole again.
    broken | spider | tie the strongest knots | {friend} tied the pieces together, and {the_thing} was whole again.
    stuck | pony | pull the heaviest load | {friend} pulled, and {hero} pushed. Pop! {The_thing} was free.
    stuck | goat | push like a giant | {friend} put down {fhis} head and pushed. With one push, {the_thing} was free.
    stuck | elephant | lift a whole tree | {friend} lifted {the_thing} with {fhis} trunk and put it on dry ground.
    in a nest | parrot | speak with all the birds | {friend} spoke with the bird, and it gave {the_thing} back.
    in a nest | squirrel | climb any tree | {friend} climbed up to the nest and came down with {the_thing}.
    in a nest | sparrow | fly to any nest | {friend} flew up to the nest and came back with {the_thing}.
    wet | goose | keep anyone dry | {friend} spread {fhis} wide wings over {the_thing} until the rain stopped.
    wet | badger | always find a dry place | {friend} led {him} to a dry cave. They waited there until the rain stopped.
    wet | stork | make a roof with {fhis} wings | {friend} opened {fhis} wings like a roof, and {the_thing} stayed dry.
    lost | owl | see in the dark | {friend} flew ahead from tree to tree, and so they found the right path.
    lost | firefly | shine like a little lamp | {friend} lit the path, and soon they knew the way again.
    lost | dog | smell the right way | {friend} put {fhis} nose to the ground and led {him} back to the right path.
    lost | bat | find the way without any light | {friend} flew ahead and called, and {hero} followed {fhim}.
""")

# How an adventure begins, and the three ways in which help is prepared, comes, and is thought about.
_OPENINGS = _lines("""
    Once upon a time there was a {trait} {kind} named {hero}, who lived {home}.
    A {trait} {kind} lived {home}. {His} name was {hero}.
    There once was a {trait} {kind} called {hero}. {He} lived {home}.
    A {trait} {kind} named {hero} lived {home}.
    Long ago, a {trait} {kind} named {hero} lived {home}.
""")
_LIKING = _lines("""
    {He} loved {like} and {like_too}.
    {He} liked {like}.
    {He} always found time {like} and {like_too}.
    -
    -
""")
_CARRYING = _lines("""
    {He} always had {a_tool} with {him}.
    {Elder} gave {him} {a_tool}. "It may help you one day," {ehe} said.
    "Never leave home without {a_tool}," {elder} always told {him}, and {hero} never did.
    Wherever {he} went, {he} took {a_tool} along. "You never know," {he} said.
""")
_REMEMBERING = _lines("""
    Then {hero} remembered {the_tool}.
    {He} sat down and thought hard. Then {he} remembered {the_tool}.
    "Wait!" said {hero}. "I have {a_tool}!"
    {He} took a deep breath. There was still {the_tool}!
""")
_TOOL_MORALS = _lines("""
    {hero} learned that it is better to think than to cry.
    From that day on, {hero} took even better care of {the_tool}.
    "A small thing can be a big help," {hero} told {elder} later.
    {hero} was proud, because {he} had done it all by {himself}.
    {hero} learned that it is wise to be ready.
""")
_FRIENDSHIP = _lines("""
    {His} best friend was {a_fkind} named {friend}, who could {skill}.
    {His} friend {friend} was {a_fkind}. {friend} could {skill}.
    Next door lived {friend}, {a_fkind} who could {skill}. They met every day.
""")
_COMING = _lines("""
    So {hero} called for {friend}. "Do not cry," said {friend}. "I can help."
    Luckily, {friend} was near. "I know what to do," {fhe} said.
    "Please help me, {friend}!" called {hero}. {friend} came as fast as {fhe} could.
    Just then, {friend} heard {him} and came at once. "Let me try," {fhe} said.
""")
_FRIEND_MORALS = _lines("""
    "Thank you, {friend}! You are the best friend in the world," said {hero}.
    {hero} learned that nobody has to do everything alone.
    {hero} gave {friend} a big hug, and they shared a warm pie.
    {hero} learned that a good friend is worth more than gold.
    From that day on, {hero} was not afraid to ask for help.
""")
_MEETING = _lines("""
    A little later, {hero} met {a_fkind} named {friend}. {plight}
    By the side of the path, {he} saw {a_fkind}. {Fhis} name was {friend}. {plight}
    Behind a bush sat {a_fkind} named {friend}. {plight}
""")
_MEETING_AT_HOME = _lines("""
    One morning, {hero} met {a_fkind} named {friend}. {plight}
    Not far from there, {he} once met {a_fkind}. {Fhis} name was {friend}. {plight}
    One day, {a_fkind} named {friend} sat before the door. {plight}
""")
_PLIGHTS = _lines("""
    {Fhe} was hungry, so {hero} gave {fhim} half of {his} bread.
    {Fhe} was thirsty, so {hero} brought {fhim} fresh water.
    {Fhe} was lost and sad. {hero} showed {fhim} the way.
    {Fhe} was all alone. {hero} sat down and talked with {fhim} for a while.
    {Fhe} was caught in the thorns. {hero} held them apart until {fhe} was free.
    {Fhe} was sick, so {hero} made {fhim} a bed of soft leaves.
""")
_THANKS = _lines("""
    "Thank you," said {friend}. "I can {i_skill}. Call me when you need me!"
    "I will not forget this," said {friend}. "I can {i_skill}, and one day I will help you."
""")
_RETURNING = _lines("""
    Just then, {friend} the {fkind} came along! "You were kind to me," {fhe} said. "Now I will help you."
    Then {he} thought of {friend} the {fkind} and called {fhim}. "It is my turn to help," said {friend}.
""")
_KINDNESS_MORALS = _lines("""
    {hero} learned that kindness always comes back.
    So {hero} saw that a small kind deed can bring a big one.
    From that day on, {hero} and {friend} were the best of friends.
    "When we help each other, everything is easy," said {friend}, and {hero} nodded.
""")
_DISMAY = _lines("""
    "Oh no!" cried {hero}.
    {hero} felt a tear on {his} cheek.
    {hero} was very sad.
    "What can I do now?" {hero} thought.
    {hero}'s heart felt heavy.
    "This is terrible," {hero} whispered.
""")
_CLOSINGS = _lines("""
    That night, {hero} fell asleep with a smile.
    It was the best day of {his} life.
    And they all lived happily ever after.
    {hero} often told this story.
    -
    -
""")

# Why the hero has the thing: a wish come true, a present for an elder, something borrowed, something quarrelled over.
_WISH = _beats("""
    More than anything in the world, {he} wanted {a_thing}.
    Every night, {he} dreamed of {a_thing}.
    {He} had only one wish. {He} wished for {a_thing}.
    One day, {he} saw {a_thing} in a shop window and could not stop thinking about it.

    "Then I could {i_play}," {he} said.
    {He} wanted to {play}.
    -
    -

    So {he} helped {elder} {chore} every day. After a week, {elder} gave {him} {the_thing}.
    {Elder} heard of it. Three days later, {ehe} came home with {the_thing} for {him}.
    On {his} birthday, {he} opened a big box. Inside was {the_thing}!
    {He} picked berries and sold them at the market. With the money, {he} bought {the_thing}.
    At last, {he} found one in an old chest. "You may keep it," said {elder}.

    {hero} was so happy that {he} danced around the room.
    "Thank you!" {he} said again and again.
    -
    -
""")
_GOING_OUT = _lines("""
    The next morning, {he} took {the_thing} {to} and {played}.
    On a {weather} day, {he} took {the_thing} {to}. {He} {played}, and {he} laughed out loud.
    One {weather} afternoon, {hero} went {to} with {the_thing}. {He} {played} for a long time.
    {He} took {the_thing} {to} at once. There {he} {played}.
""")
_WISH_BY_DAY = _lines("""
    Then {hero} {played} until the sun went down.
    Now {hero} could play again, and {he} laughed with joy.
    Soon {hero} carried {the_thing} home and showed it to {elder}.
""")
_WISH_BY_NIGHT = _lines("""
    At home, {hero} put {the_thing} next to {his} bed.
    {Elder} was waiting at the door and took {him} in {ehis} arms.
""")
_PRESENT = _beats("""
    The next day was {elder}'s birthday, and {hero} wanted to give {ehim} something special.
    {Elder} was sick in bed, and {hero} wished to make {ehim} smile.
    Nobody was as good to {him} as {elder}, and {hero} wanted to thank {ehim}.

    {He} saved all {his} pennies and bought {a_thing}.
    With the help of a kind old man, {he} found {a_thing}.
    {He} looked everywhere and chose {a_thing}.

    "I hope it will bring joy," {he} thought.
    It was the finest present that {he} could think of.
    -
    -
""")
_SETTING_OUT = _lines("""
    Early in the morning, {he} set off {through} with {the_thing}.
    On a {weather} morning, {he} carried {the_thing} {through} with great care.
    The way to {elder} went {through}. {hero} walked and sang and held {the_thing} tight.
""")
_PRESENT_ENDS = _lines("""
    At last {he} gave {the_thing} to {elder}. "This is the best present I ever had," {ehe} said.
    When {elder} saw {the_thing}, {ehe} smiled and gave {him} a kiss.
    Soon {elder} held {the_thing} in {ehis} hands. "And you went so far for me!" {ehe} said.
""")
_BORROWED = _beats("""
    {His} friend {pal} had {a_thing}, and {hero} wished to {play} too.
    One day, {pal} came to play and brought {a_thing}. {hero} had never seen anything so fine.
    Everyone loved {pal}'s {thing}. It was {color}, and {hero} wished for one just like it.

    "You may have it for one day," said {pal}. "But please be careful." "I promise," said {hero}.
    "May I borrow it?" asked {hero}. "Yes, but bring it back tonight," said {pal}.
""")
_BORROWED_OUT = _lines("""
    {He} took {the_thing} {to} at once. There {he} {played}.
    So {hero} went {to} with {the_thing}. {He} {played} for a long time.
    At once {hero} ran {to}. {He} {played}, and {he} laughed out loud.
""")
_BORROWED_ENDS = _lines("""
    That evening, {hero} gave {the_thing} back to {pal} and told {phim} all. "Thank you for the truth," said {pal}.
    As promised, {hero} brought {the_thing} back to {pal}. The two of them laughed about the adventure.
    Then {hero} gave {the_thing} back. "I am sorry that I was not careful," {he} said. But {pal} was not angry at all.
""")
_SHARED = _beats("""
    One {weather} day, {hero} and {his} friend {pal} found {a_thing} {at}. Both of them wanted to {they_play}.
    One day, {hero} was {at} with {his} friend {pal}. They had {a_thing}, but only one, and both wanted to {they_play}.

    "It is mine!" said {hero}. "No, it is mine!" said {pal}. They pulled and pulled.
    "Me first!" shouted {hero}. "No, me first!" shouted {pal}. They both grew angry.

    They did not look where they were going.
    Nobody was careful now.
    -
""")
_SHARED_ENDS = _lines("""
    After that, they took turns with {the_thing}. First it was {pal}'s turn, and then it was {hero}'s turn.
    "Let us share {the_thing}," said {hero}. "Yes, let us share it," said {pal}. And so they did.
    They both said that they were sorry. From then on, {the_thing} belonged to both of them.
""")

# Something to learn. Each block: what | the failure | the advice | the success | what it was good for.
_SKILLS = _beats("""
    whistle
    Only air came out.
    Make your lips small and round, and blow softly
    A clear, bright sound came out!
    Every morning, {he} whistled with the birds.

    swim
    {He} splashed and swallowed a lot of water.
    Kick your legs slowly, like a frog
    {He} swam all the way across the pond!
    In summer, {he} swam with the ducks.

    ride a bicycle
    {He} fell into the soft grass.
    Look far ahead, and not at your feet
    {He} rode down the whole road!
    Now {he} could bring {elder} fresh bread every morning.

    skip with a rope
    The rope caught {his} feet every time.
    Listen to the rope, and jump when it taps the ground
    {He} jumped ten times without a stop!
    Soon everyone wanted to skip with {him}.

    draw a horse
    It looked like a potato with legs.
    Draw a big bean first, and then the head and the legs
    It looked so real that it seemed to run!
    {He} hung the picture over {elder}'s bed.

    bake bread
    The bread was as hard as a stone.
    Let the dough sleep in a warm place
    The bread was soft and golden!
    The whole street came to eat a slice.

    catch a ball
    The ball bounced off {his} nose.
    Keep your eyes on the ball, and make a nest with your hands
    The ball landed right in {his} hands!
    At the next game, everyone wanted {him} in the team.

    jump over the stream
    {He} landed in the cold water.
    Take three big steps, and then think of a bird
    {He} landed on the other side with dry feet!
    Now {he} could visit the meadow with the blue flowers.

    sing in front of others
    {His} voice was as small as a seed.
    Close your eyes and sing to the moon
    {His} song filled the whole room!
    At the feast, everyone clapped for a long time.

    build a tall tower
    It fell down with a crash.
    Put the biggest stones at the bottom
    The tower stood, and it was taller than {he} was!
    From the top, a little flag waved to all the neighbors.

    count to one hundred
    After twelve, {he} did not know what came next.
    Sing the numbers like a song
    {He} did not miss a single number!
    That night, {he} counted all the stars over the house.

    grow a sunflower
    Nothing came out of the ground.
    Give it water every day, and then wait
    One day there was a tall flower with a yellow face!
    {He} gave the seeds to the birds in winter.

    skate on the ice
    {He} slid and sat down on the ice.
    Bend your knees a little, and push to the side
    {He} flew over the ice like the wind!
    All winter long, {he} raced with {his} friends.

    make pancakes
    The pancake stuck to the ceiling.
    Wait until you see small bubbles
    The pancake turned in the air and fell back into the pan!
    On Sundays, {he} made breakfast for everyone.
""")
_LEARNING = _beats("""
    There was one thing {he} wanted to learn. {He} wanted to {learn}.
    All the others could {learn}, and {hero} wished {he} could do it too.
    For a long time, {hero} had a dream. {He} wanted to {learn}.

    Next door lived an old {fkind} named {friend}, who knew many things.
    {friend}, a wise old {fkind}, often sat in the sun and watched {him}.
    {His} neighbor was a friendly old {fkind} named {friend}.
""")
_TRYING = _beats("""
    One {weather} morning, {hero} tried to {learn}.
    So {he} tried to {learn} one day.
    On Monday, {hero} tried to {learn} for the first time.
    When nobody was near, {hero} tried to {learn} in secret.

    {failure}

    {He} tried again, and again it went wrong.
    The others laughed a little, and {hero} blushed.
    {His} friend {pal} tried to help, but that did not help at all.
    That evening, {elder} told {him} not to worry.
    -

    "I will never learn it," {he} said and sat down.
    {He} wanted to give up.
    {hero} hung {his} head.
""")
_ADVICE = _beats("""
    Now {friend} came over. "{advice}," {fhe} said.
    "May I tell you a secret?" asked {friend}. "{advice}."
    Then {friend} smiled at {him}. "I could not do it at first, too," {fhe} said. "{advice}."

    {hero} listened well and did just that, day after day.
    {hero} nodded and tried it that way, all week long.
    {hero} dried {his} eyes and tried once more.
    So {hero} tried again the next day, and the day after that.

    {success}
    At last it worked. {success}
    And then, what a surprise! {success}
""")
_LEARNED = _beats("""
    "I did it!" shouted {hero}. "I can {learn}!"
    At once {hero} ran to {friend} and thanked {fhim}.
    How {friend} clapped and cheered!
    "Look, {pal}!" called {hero}. "I can {learn}!"

    {use}

    {hero} learned that nobody is good at something on the first day.
    Now {he} knew that it pays to try again.
    "You only fail when you stop," said {friend}.
    {hero} learned that good advice is a treasure.
    That night, {hero} thanked {friend} with a basket of plums.
    When {his} friend {pal} wanted to learn it too, {hero} knew what to say.
""")

# A noise in the night | whose | why.
_NOISES = _rows("""
    Tap, tap, tap | mouse | {Fhe} was trying to open a nut
    Scratch, scratch | kitten | {Fhe} was scratching at the door, because {fhe} wanted to come in
    Hoo, hoo | baby owl | {Fhe} had fallen out of the nest
    Bump, bump | hedgehog | {Fhe} kept running into an empty pot
    Squeak, squeak | baby bat | {Fhe} was hanging on the curtain and could not find the window
    Rustle, rustle | squirrel | {Fhe} was looking for a warm place in the dry leaves
    Plop, plop | frog | {Fhe} had jumped into the water bucket and could not get out
    Whine, whine | puppy | {Fhe} had lost {fhis} mother in the dark
""")

# What is shared with that visitor | the supper it was part of.
_GIFTS_AT_NIGHT = _rows("""
    a piece of cheese | bread and cheese
    a bowl of warm milk | soup and warm milk
    a slice of apple | a big red apple
    some soft bread | soft bread and butter
    a spoon of oats | oats with honey
""")
_NIGHT = _beats("""
    {hero} was afraid of the dark.
    There was only one thing {he} did not like, and that was the dark.
    At night, {hero} always pulled the blanket over {his} head.
    By day {hero} was brave, but not in the dark.
    {His} friend {pal} was not afraid of the dark, but {hero} was.

    One evening, {hero} had {supper} for supper.
    For supper, {he} had {supper} that evening.

    {He} could not eat it all, so {he} kept some for the morning.
    A little of it was left on the table.

    {Elder} put a small lamp by the bed. "Light it when you need it," {ehe} said.
    Before bed, {elder} gave {him} a small lamp. "Now you have your own little moon," {ehe} said.
    {Elder} told {him} a story, and then {ehe} put a small lamp by the bed.
""")
_HEARING = _beats("""
    In the middle of the night, there was a noise. "{noise}!"
    All at once, {hero} woke up. "{noise}!" What was that?
    It was late when a noise woke {him}. "{noise}!" What could it be?

    {His} heart beat fast.
    {hero} did not dare to move.
    Was it a monster? Was it a ghost?
    Was it a wolf? {hero} wished that {elder} was there.

    "{noise}!" There it was again.
    -
""")
_LOOKING = _beats("""
    Then {hero} thought of the lamp. {He} lit it and looked.
    "I have a lamp, and I am brave," {he} told {himself}. {He} lit it and went to see.
    With shaking hands, {he} lit the lamp. The dark went away.
    On the tips of {his} toes, {hero} went to the lamp and lit it.

    It was only {a_fkind}! {doing}.
    There sat {a_fkind}, no bigger than a shoe. {doing}.

    "You poor little thing," said {hero}. "What is your name?" "I am {friend}," said the {fkind} softly.
    "Do not be afraid. I am {hero}," {he} said. "And I am {friend}," said the {fkind}.
""")
_MORNING = _beats("""
    So {hero} helped {fhim} and gave {fhim} {gift} from {his} supper.
    Gently, {hero} took {fhim} inside and shared {gift} with {fhim}.

    {friend} stayed until the sun came up.
    Together they watched the moon.
    Then both of them fell asleep, side by side.
    They talked until {friend} was tired, and {hero} was tired too.

    After that night, {hero} was not afraid of the dark any more.
    {hero} learned that many things are not scary when we look at them closely.
    From then on, every noise in the night sounded like a friend to {him}.
    In the morning, {hero} told {elder} and {his} friend {pal} all about {friend}.
""")

# What the hero did that morning | where something small could have stayed behind.
_ERRANDS = _rows("""
    hung up the washing | in the washing basket, under a shirt
    fed the hens | in the hen house, and a brown hen was sitting on it
    ate breakfast | behind the bread box in the kitchen
    took a nap in the hay | deep in the hay
    picked apples | at the bottom of the apple basket
    read in the big chair | between the cushions of the big chair
    built a castle of sand | under the gate of the sand castle
    took a bath | behind the bath tub, next to the soap
    baked cookies | in the flour jar, all white
    planted beans | between two rows of beans
    made the bed | under the pillow
    played the piano | on top of the piano, behind the clock
    cleaned {his} boots | inside the left boot
    drew with chalk | in the box with the chalk
""")
_HIDING_PLACES = _lines("""
    under the bed
    behind the door
    in the cupboard
    under the stairs
    on the shelf
    in all {his} pockets
    behind the curtain
    under the rug
    in the toy box
    on the roof of the shed
    in the mail box
""")
_OWNING = _beats("""
    {He} had {a_thing}, and {he} took it everywhere.
    The thing {he} loved most was {a_thing}.
    {Elder} had given {him} {a_thing}, and {he} loved to {play}.

    One {weather} morning, {hero} {errand}, and then {he} {errand_too}.
    One day, {hero} {errand}. After that, {he} {errand_too}.
""")
_LOSING = _beats("""
    In the evening, {hero} wanted to play with {the_thing}, but it was gone!
    Then {he} wanted to show {the_thing} to {his} friend {pal}, but it was not there!

    {He} looked {look}. It was not there.

    {He} looked {look_too}. It was not there, either.
    {Elder} looked {look_too}, but found only dust.
    {His} friend {pal} looked {look_too}, but found only an old sock.
""")
_THINKING_BACK = _beats("""
    "Think back," said {elder}. "What did you do today?"
    {Elder} took {his} hand. "Where have you been today?" {ehe} asked.

    "First I {i_errand}," said {hero}, "and then I {i_errand_too}."

    "Then let us look there," said {elder}.
    "Then we know where to look," said {elder}, and off they went.
    They went back to each place, one after the other.
    -
""")
_FINDING = _beats("""
    And there was {the_thing}! It was {found}.
    What luck! They found {the_thing} {found}.

    {hero} laughed and {played}.
    {hero} held it close and danced for joy.
    "I missed you so much," {he} told it.
    That day, {hero} {played} as never before.

    Since then, {he} has always put {the_thing} back in its place.
    {hero} learned that it helps to go back step by step.
    {hero} learned that two can look better than one.
    That night, {hero} put {the_thing} next to {his} bed.
""")


def story(seed: int, index: int) -> str:
    """Story number ``index`` of a seed: four to six paragraphs, joined by blank lines, some 870 characters in all."""
    rng = random.Random(f"{seed} {index}")  # seeding with text is stable from one Python to the next, as is random()
    words = _cast(rng)
    paragraphs = _pick(rng, _PLOTS)(rng, words)
    text = "\n\n".join(
        " ".join(sentence for beat in paragraph if (sentence := _pick(rng, beat))) for paragraph in paragraphs
    )
    return text.format_map(words)


def stories(seed: int) -> Iterator[str]:
    """Stories 0, 1, 2, … of a seed, without end."""
    return (story(seed, index) for index in count())


Words = dict[str, str]  # what the templates are filled with
Beat = list[str]  # sentences of which one is told
Paragraphs = list[list[Beat]]

_PRONOUNS = {"he": ("he", "him", "his", "himself"), "she": ("she", "her", "her", "herself")}


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _pick_two(rng: random.Random, options: Sequence[T]) -> tuple[T, T]:
    first, step = int(rng.random() * len(options)), 1 + int(rng.random() * (len(options) - 1))
    return options[first], options[(first + step) % len(options)]


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _person(prefix: str, pronoun: str) -> Words:
    he, him, his, himself = _PRONOUNS[pronoun]
    words = {f"{prefix}he": he, f"{prefix}him": him, f"{prefix}his": his, f"{prefix}himself": himself}
    return words | {word[0].upper() + word[1:]: form.capitalize() for word, form in words.items()}


def _cast(rng: random.Random) -> Words:
    """The hero, the family, a playmate and the weather: what every plot can draw on."""
    (hero, pronoun, kind, home), (pal, pal_pronoun, _, _) = _pick_two(rng, _HEROES)
    elder, elder_pronoun = _pick(rng, _ELDERS)
    words = _person("", pronoun) | _person("p", pal_pronoun) | _person("e", elder_pronoun)
    elder = f"{words['his']} {elder}"
    like, like_too = _pick_two(rng, _LIKES)
    return words | {
        "hero": hero,
        "kind": kind,
        "trait": _pick(rng, _TRAITS),
        "home": home,
        "like": like,
        "like_too": like_too,
        "weather": _pick(rng, _WEATHERS),
        "pal": pal,
        "elder": elder,
        "Elder": elder.capitalize(),
    }


def _helper(rng: random.Random, kind: str) -> Words:
    return _person("f", _pick(rng, ("she", "he"))) | {
        "friend": _HELPERS[kind],
        "fkind": kind,
        "a_fkind": _a(kind),
    }


def _thing(rng: random.Random, words: Words, name: str, play: str, played: str) -> Words:
    color = _pick(rng, _COLORS)
    return {
        "thing": name,
        "the_thing": f"the {name}",
        "The_thing": f"The {name}",
        "a_thing": _a(f"{color} {name}"),
        "color": color,
        "play": play.format_map(words),
        "played": played.format_map(words),
        "i_play": play.format(he="I", his="my"),
        "they_play": play.format(he="they", his="their"),
    }


def _adventure(rng: random.Random, words: Words) -> Paragraphs:
    """A wish, a mishap, and a mend by a tool, a friend, or a stranger who was helped before. Its words are added."""
    motive = _pick(rng, ("wish", "wish", "present", "borrowed", "shared"))
    name, play, played, mishaps, _ = _pick(rng, _GIFTS if motive == "present" else _THINGS)
    mishap = _pick(rng, [*mishaps.split(), "dark"])
    remedy = _REMEDY_OF[mishap]
    words |= _thing(rng, words, name, play, played)
    words |= zip(("to", "at", "through", "tree", "water", "hole"), _pick(rng, _PLACES), strict=True)
    words["chore"] = _pick(rng, _CHORES)

    way = _pick(rng, ("tool", "friend", "kindness"))
    if way == "tool":
        tool, mend = _pick(rng, _TOOLS[remedy])
        words |= {"tool": tool, "a_tool": _a(tool), "the_tool": f"the {tool}"}
    else:
        kind, skill, mend = _pick(rng, _FRIENDS[remedy])
        words |= _helper(rng, kind)
        words |= {"skill": skill.format_map(words), "i_skill": skill.format(fhis="my")}
        words["plight"] = _pick(rng, _PLIGHTS).format_map(words)
    before, met, comes, moral = {
        "tool": ([_CARRYING], [], _REMEMBERING, _TOOL_MORALS),
        "friend": ([_FRIENDSHIP], [], _COMING, _FRIEND_MORALS),
        "kindness": ([], [_MEETING, _THANKS], _RETURNING, _KINDNESS_MORALS),
    }[way]
    beginning, out, ending = {
        "wish": (_WISH, _GOING_OUT, _WISH_BY_NIGHT if mishap == "dark" else _WISH_BY_DAY),
        "present": (_PRESENT, _SETTING_OUT, _PRESENT_ENDS),
        "borrowed": (_BORROWED, _BORROWED_OUT, _BORROWED_ENDS),
        "shared": (_SHARED, [], _SHARED_ENDS),
    }[motive]
    opening = [_OPENINGS, _LIKING, *before]
    trouble = [[text for (text,) in _MISHAPS[mishap]], _DISMAY, [text for (text,) in _IN_VAIN[remedy]]]
    solution = [[comes, [mend]], [ending, moral, _CLOSINGS]]
    if motive == "shared":  # the quarrel leads straight to the mishap, so a stranger has to be met before it
        return [opening + ([_MEETING_AT_HOME, _THANKS] if met else []), beginning + trouble, *solution]
    return [opening, beginning, [out, *met], trouble, *solution]


def _learning(rng: random.Random, words: Words) -> Paragraphs:
    """A skill, a failure, an old neighbor's advice, and practice."""
    skill, failure, advice, success, use = _pick(rng, _SKILLS)
    words |= _helper(rng, _pick(rng, _WISE_ANIMALS)) | {"learn": skill, "advice": advice}
    words |= {"failure": failure.format_map(words), "success": success.format_map(words), "use": use.format_map(words)}
    return [[_OPENINGS, _LIKING], _LEARNING, _TRYING, _ADVICE, _LEARNED]


def _night(rng: random.Random, words: Words) -> Paragraphs:
    """A noise, a lamp that was put by the bed, a small visitor, and what was left of supper."""
    noise, kind, doing = _pick(rng, _NOISES)
    gift, supper = _pick(rng, _GIFTS_AT_NIGHT)
    words |= _helper(rng, kind)
    words |= {"noise": noise, "doing": doing.format_map(words), "gift": gift, "supper": supper}
    return [[_OPENINGS, _LIKING, _NIGHT[0]], _NIGHT[1:], _HEARING, _LOOKING, _MORNING]


def _loss(rng: random.Random, words: Words) -> Paragraphs:
    """Something mislaid at one of two errands, and found by thinking back."""
    name, play, played, _, _ = _pick(rng, _SMALL_THINGS)
    words |= _thing(rng, words, name, play, played)
    (errand, found), (errand_too, found_too) = _pick_two(rng, _ERRANDS)
    words |= {"errand": errand.format_map(words), "errand_too": errand_too.format_map(words)}
    words |= {"i_errand": errand.format(his="my"), "i_errand_too": errand_too.format(his="my")}
    look, look_too = _pick_two(rng, _HIDING_PLACES)
    words |= {"look": look.format_map(words), "look_too": look_too.format_map(words)}
    words["found"] = _pick(rng, (found, found_too))
    return [[_OPENINGS, _LIKING], _OWNING, [*_LOSING, _DISMAY], _THINKING_BACK, _FINDING]


_PLOTS = [_adventure] * 8 + [_learning, _night, _loss] * 2
_GIFTS = [thing for thing in _THINGS if "gift" in thing[-1]]
_SMALL_THINGS = [thing for thing in _THINGS if "small" in thing[-1]]
