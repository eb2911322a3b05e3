"""The 80 objects of COCO and the words that captions call them.

A table of facts published with Rohrbach et al., "Object Hallucination in Image Captioning",
EMNLP 2018 (the synonyms list and the double words of the authors' CHAIR release). Words are in
the singular and lower case, as they stand after lemmatizing. What the published lists hold but
can never match is left out: "iPhone" (captions are lower-cased), "stove top oven" (three words),
"cheesecake" and "motor bike" (a stray space before them).
"""

_SYNONYMS = {
    "person": """girl boy man woman kid child chef baker people adult rider children baby worker
        passenger sister biker policeman cop officer lady cowboy bride groom male female guy
        traveler mother father gentleman pitcher player skier snowboarder skater skateboarder
        foreigner caller offender coworker trespasser patient politician soldier grandchild
        serviceman walker drinker doctor bicyclist thief buyer teenager student camper driver
        solider hunter shopper villager""",
    "bicycle": "bike unicycle minibike trike",
    "car": "automobile van minivan sedan suv hatchback cab jeep coupe taxicab limo taxi",
    "motorcycle": "scooter motor_cycle motorbike moped",
    "airplane": "jetliner plane air_plane monoplane aircraft jet airbus biplane seaplane",
    "bus": "minibus trolley",
    "train": "locomotive tramway caboose",
    "truck": "pickup lorry hauler firetruck",
    "boat": """ship liner sailboat motorboat dinghy powerboat speedboat canoe skiff yacht kayak
        catamaran pontoon houseboat vessel rowboat trawler ferryboat watercraft tugboat schooner
        barge ferry sailboard paddleboat lifeboat freighter steamboat riverboat battleship
        steamship""",
    "traffic light": "street_light traffic_signal stop_light streetlight stoplight",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "",
    "bench": "pew",
    "bird": """ostrich owl seagull goose duck parakeet falcon robin pelican waterfowl heron
        hummingbird mallard finch pigeon sparrow seabird osprey blackbird fowl shorebird
        woodpecker egret chickadee quail bluebird kingfisher buzzard willet gull swan bluejay
        flamingo cormorant parrot loon gosling waterbird pheasant rooster sandpiper crow raven
        turkey oriole cowbird warbler magpie peacock cockatiel lorikeet puffin vulture condor
        macaw peafowl cockatoo songbird""",
    "cat": "kitten feline tabby",
    "dog": """puppy beagle pup chihuahua schnauzer dachshund rottweiler canine pitbull collie
        pug terrier poodle labrador doggie doberman mutt doggy spaniel bulldog sheepdog
        weimaraner corgi cocker greyhound retriever brindle hound whippet husky""",
    "horse": """colt pony racehorse stallion equine mare foal palomino mustang clydesdale bronc
        bronco""",
    "sheep": "lamb ram goat ewe",
    "cow": "cattle oxen ox calf holstein heifer buffalo bull zebu bison",
    "elephant": "",
    "bear": "panda",
    "zebra": "",
    "giraffe": "",
    "backpack": "knapsack",
    "umbrella": "",
    "handbag": "wallet purse briefcase",
    "tie": "bow",
    "suitcase": "suit_case luggage",
    "frisbee": "",
    "skis": "ski",
    "snowboard": "",
    "sports ball": "ball",
    "kite": "",
    "baseball bat": "",
    "baseball glove": "",
    "skateboard": "",
    "surfboard": "longboard skimboard shortboard wakeboard",
    "tennis racket": "racket",
    "bottle": "",
    "wine glass": "",
    "cup": "",
    "fork": "",
    "knife": "pocketknife knive",
    "spoon": "",
    "bowl": "container",
    "banana": "",
    "apple": "",
    "sandwich": "burger sub cheeseburger hamburger",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "",
    "pizza": "",
    "donut": "doughnut bagel",
    "cake": "cupcake shortcake coffeecake pancake",
    "chair": "seat stool",
    "couch": "sofa recliner futon loveseat settee chesterfield",
    "potted plant": "houseplant",
    "bed": "",
    "dining table": "table desk",
    "toilet": "urinal commode lavatory potty",
    "tv": "monitor televison television",
    "laptop": "computer notebook netbook lenovo macbook laptop_computer",
    "mouse": "",
    "remote": "",
    "keyboard": "",
    "cell phone": "mobile_phone phone cellphone telephone phon smartphone",
    "microwave": "",
    "oven": "stovetop stove",
    "toaster": "",
    "sink": "",
    "refrigerator": "fridge freezer",
    "book": "",
    "clock": "",
    "vase": "",
    "scissors": "",
    "teddy bear": "teddybear",
    "hair drier": "hairdryer",
    "toothbrush": "",
}

_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub"

OBJECTS = tuple(_SYNONYMS)
"""COCO's 80 object names."""

OBJECT_OF = {
    word.replace("_", " "): name
    for name, words in _SYNONYMS.items()
    for word in (name.replace(" ", "_"), *words.split())
}
"""Word of a caption -> the object it names. Two-word names hold a space."""

DOUBLE_WORDS = (
    # Two-word names of objects, so that a "hot dog" is no dog. "Dining table" is not among the
    # published ones: it is read as "table", which names the same object.
    {word: word for word in OBJECT_OF if " " in word and word != "dining table"}
    # No objects, though a word of them is one; "motor bike" is none in the published list.
    | {word: word for word in ("home plate", "train track", "motor bike")}
    | {f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS.split()}
    | {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}
)
"""Two neighbouring words -> the one word that they are read as."""
