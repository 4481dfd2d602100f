"""What `icon-shift` shows: things by the name that a person says, with the names that designers give their icons."""

from collections.abc import Mapping

_THINGS = """
airplane: plane, aeroplane
alarm clock: alarm, alert alarm clock
ambulance: ambulance car
anchor
apple: red apple
armchair
atom
axe
backpack
balloon: party balloon
banana
bandage
bank
banknote: money, cash, bill, money cash bill
bar chart: chart bar, barchart, chart column
barcode
baseball
basket: shopping basket
basketball
bathtub: bath
battery: battery full, battery half, battery medium
bed
beer: beer mug
bell: bell ring, alarm bell, notification bell, alert alarm bell
bicycle: bike
binoculars: binocular
bird
bomb
bone
book: open book, book open, closed book, notes book
bookmark
bottle
box: package, parcel, archive box
brain
bread
briefcase
broom
bug
building: office building
bus
butterfly
cactus
cake: birthday cake
calculator: accounting calculator
calendar: calendar date, blank calendar, calendar blank
camera: photo camera
candle
candy
car: automobile
carrot
castle
cat: cat face
chair
cheese
cherry: cherries
church
clipboard: copy paste clipboard
clock: time clock, clock circle
cloud
clover
coffee cup: coffee, cup, mug, hot beverage
coins
compass: compass direction, safari compass
cookie
credit card: bank card
crown: vip crown king
cube: shape cube
database
diamond: gem, gem stone
dice: board game dice
DNA: dna double helix
document: file
dog: dog face
donut: doughnut
door
dress
drone
dumbbell
ear
egg
elevator
envelope: mail, email, envelope close, envelope letter front, email envelope
eraser
eye: view eye
factory: building factory
feather
ferris wheel
film: film roll, film strip
fingerprint: finger print
fire: flame, trends hot flame
fire extinguisher
first aid kit: first aid
fish
flag
flashlight
flask: beaker, lab flask, test flask
floppy disk: save, diskette, floppy
flower: blossom
folder: file folder, office folder
fork and knife: fork knife, utensils, restaurant, cutlery
funnel: filter
game controller: gamepad, controller, video game, video game controller, video games controller
gear: cog, settings, setting, setting cog
ghost: horror ghost
gift: present, wrapped gift, wrapped present, products gift, reward gift
glasses: eyeglasses, eye glasses
globe: earth, world, globe showing americas
graduation cap: academic cap, graduation, school cap, mortarboard
grapes: grape
guitar
hamburger: burger
hammer
hand: raised hand
handshake
hard drive: hard disk, harddisk
headphones: headphone
headset
heart: heart favorite, heart black suit, heart white suit
helicopter
hospital: hospital building
hourglass: hourglass done, hourglass with flowing sand
house: home, house building, home chimney, building house
ice cream: icecream
ID card
inbox
joystick
key
keyboard
knife
ladder
lamp: office desk lamp, desk lamp
laptop: laptop computer, network laptop
leaf
lemon
light bulb: lightbulb, bulb, electric light bulb, creativity idea bulb
lighthouse
link: chain, hyperlink, link symbol
lock: padlock, locked
lungs
magic wand: wand
magnet
magnifying glass: search, magnifier, magnifying glass tilted left, search magnifier, left magnifying glass
mailbox
map: world map
map pin: location, location pin, map marker, marker, pin location
medal: sports medal
megaphone: share megaphone
microchip: cpu, chip
microphone: mic, microphone karaoke
microscope
monitor: desktop, desktop computer, computer monitor, desktop monitor
moon: crescent moon
mosque
motorcycle: motorbike
mountain: mountains, snow capped mountain
mouse: computer mouse, two button mouse, three button mouse, mouse wireless
mushroom
music note: music, musical note, note music, notes music
newspaper
notebook: note book
open lock: lock open, unlock, unlocked
paintbrush: brush, paint brush
palette: artist palette, color palette, painting palette
paper plane: send, send email paper plane
paperclip: paper clip, attachment, attach, link paperclip
passport
pen: ink pen
pencil
people: users
person: user, account, profile, profile male, bust in silhouette
phone: telephone, vintage phone, phone retro
piano: musical keyboard
picture: image, photo, framed picture, frame picture, photo image
pie chart: chart pie, pie chart poll report
piggy bank: saving piggy bank
pill: capsule, drugs pill
pizza
planet
plug: electric plug
popcorn
power button: power, power off
price tag: tag
printer: print
projector
pushpin: pin, thumbtack
puzzle piece: puzzle, jigsaw puzzle, jigsaw puzzle piece, plugin jigsaw puzzle
QR code
rabbit: rabbit face
radar
radio: radio stereo
rainbow
receipt
recycling symbol: recycle
robot: bot, robot face
rocket
router
ruler: straight ruler, triangular ruler
safe: vault, saving safe
sailboat
satellite
school
scissors: scissor, cut, copy paste cut scissors, black scissors
scooter: kick scooter
screwdriver
server
shield
ship: passenger ship
shirt: t shirt, tshirt
shop: store, convenience store, storefront
shopping bag
shopping cart: cart, trolley, shop cart, shopping cart trolley
shovel
signpost
skull
smartphone: mobile, mobile phone, mobile phone smartphone
snowflake: snow
sofa: couch
speaker
speech bubble: speech balloon, comment, message, chat, speech balloon empty, conversation chat
stamp
star: rating star, white medium star
stethoscope
stopwatch: time stopwatch
suitcase: luggage
sun
sunglasses
sword
syringe
tablet
target
taxi
telescope
television: tv
tennis ball
tent
test tube
thermometer: temperature thermometer
thumbs down: thumb down, dislike, thumbs down sign
thumbs up: thumb up, like, thumbs up sign
ticket
toilet
toilet paper: roll of paper
toolbox
tooth
tornado
traffic light: vertical traffic light
train
trash can: trash, bin, dustbin, trash bin, garbage, wastebasket
treasure chest
tree: deciduous tree, evergreen tree
trophy
truck: lorry, delivery truck
umbrella
USB stick: usb, flash drive
video camera: video, videocam, camcorder, movie camera, video camera film
volcano
volleyball
wallet
washing machine
watch: wrist watch, time wrist watch, smart watch, watch time
watermelon
webcam
wheelchair
wifi: wi fi, wifi signal
wind turbine
wine glass: wine
wrench: spanner
"""


def _read(text: str) -> dict[str, tuple[str, ...]]:
    things = {}
    for line in text.strip().splitlines():
        name, _, others = line.partition(":")
        things[name] = (name.lower(), *(other.strip() for other in others.split(",") if other.strip()))
    return things


THINGS: Mapping[str, tuple[str, ...]] = _read(_THINGS)
"""Icon names by class name. Left out: logos, arrows and other signs, and words that mean two things ("table")."""

MISNAMED = frozenset(
    {
        ("flat-color-icons", "dislike"),  # hearts
        ("flat-color-icons", "like"),
        ("ri", "dislike-fill"),
        ("ri", "dislike-line"),
        ("mynaui", "music-diamond"),  # a note on a square
        ("mynaui", "music-diamond-solid"),
        ("hugeicons", "money-send-01"),  # banknotes
        ("hugeicons", "money-send-02"),
        *(  # three circles
            (prefix, f"color-filter{ending}")
            for prefix, ending in (
                ("icon-park", ""),
                ("icon-park-outline", ""),
                ("icon-park-solid", ""),
                ("icon-park-twotone", ""),
                ("iconoir", ""),
                ("mingcute", "-fill"),
                ("mingcute", "-line"),
                ("ri", "-fill"),
                ("ri", "-line"),
            )
        ),
    }
)
"""Sets and icons that show something else than their name, found by looking; they are left out."""
