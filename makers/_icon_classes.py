"""What `icon-shift` shows: things by the name that a person says, with the names that designers give their icons."""

from collections.abc import Mapping

_THINGS = """
airplane: plane, aeroplane
alarm clock: alarm
ambulance
anchor
apple
armchair
atom
axe
backpack
balloon
banana
bandage
bank
banknote: money, cash, bill
bar chart: chart bar, barchart, chart column
barcode
baseball
basket: shopping basket
basketball
bathtub: bath
battery: battery full, battery half, battery medium
bed
beer: beer mug
bell: bell ring, alarm bell, notification bell
bicycle: bike
binoculars: binocular
bird
bomb
bone
book: open book, book open
bookmark
bottle
box: package, parcel
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
calculator
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
clipboard
clock: time clock, clock circle
cloud
clover
coffee cup: coffee, cup, mug, hot beverage
coins
compass
cookie
credit card: bank card
crown
cube
database
diamond: gem, gem stone
dice
DNA
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
envelope: mail, email
eraser
eye: view eye
factory
feather
ferris wheel
film: film roll, film strip
fingerprint: finger print
fire: flame
fire extinguisher
first aid kit: first aid
fish
flag
flashlight
flask: beaker, lab flask
floppy disk: save, diskette, floppy
flower: blossom
folder: file folder
fork and knife: fork knife, utensils, restaurant, cutlery
funnel: filter
game controller: gamepad, controller, video game, video game controller
gear: cog, settings, setting, setting cog
ghost
gift: present, wrapped gift
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
heart: heart favorite
helicopter
hospital
hourglass: hourglass done
house: home
ice cream: icecream
ID card
inbox
joystick
key
keyboard
knife
ladder
lamp
laptop
leaf
lemon
light bulb: lightbulb, bulb
lighthouse
link: chain, hyperlink
lock: padlock, locked
lungs
magic wand: wand
magnet
magnifying glass: search, magnifier, magnifying glass tilted left
mailbox
map: world map
map pin: location, location pin, map marker, marker, pin location
medal: sports medal
megaphone
microchip: cpu, chip
microphone: mic
microscope
monitor: desktop, desktop computer, computer monitor
moon: crescent moon
mosque
motorcycle: motorbike
mountain: mountains
mouse: computer mouse
mushroom
music note: music, musical note, note music
newspaper
notebook: note book
open lock: lock open, unlock, unlocked
paintbrush: brush, paint brush
palette: artist palette, color palette, painting palette
paper plane: send
paperclip: paper clip, attachment, attach
passport
pen: ink pen
pencil
people: users
person: user, account, profile
phone: telephone
piano: musical keyboard
picture: image, photo, framed picture
pie chart: chart pie
piggy bank
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
puzzle piece: puzzle
QR code
rabbit: rabbit face
radar
radio
rainbow
receipt
recycling symbol: recycle
robot: bot
rocket
router
ruler
safe: vault
sailboat
satellite
school
scissors: scissor, cut
scooter: kick scooter
screwdriver
server
shield
ship: passenger ship
shirt: t shirt, tshirt
shop: store, convenience store, storefront
shopping bag
shopping cart: cart, trolley
shovel
signpost
skull
smartphone: mobile, mobile phone
snowflake: snow
sofa: couch
speaker
speech bubble: speech balloon, comment, message, chat
stamp
star
stethoscope
stopwatch
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
thermometer
thumbs down: thumb down, dislike
thumbs up: thumb up, like
ticket
toilet
toilet paper: roll of paper
toolbox
tooth
tornado
traffic light: trafficlight, vertical trafficlight
train
trash can: trash, bin, dustbin, trash bin, garbage, wastebasket
treasure chest
tree: deciduous tree
trophy
truck: lorry, delivery truck
umbrella
USB stick: usb, flash drive
video camera: video, videocam, camcorder
volcano
volleyball
wallet
washing machine
watch: wrist watch
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
