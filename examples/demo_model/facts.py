"""Hand-written tables of simple facts that the demo model is taught; data only, no logic."""

# Set by hand: a formatter would give every short entry a line of its own.
# fmt: off

# A relation: its name, the phrasings that ask for it, the sentence that answers, and the table "key:value; key:value".
# {k} stands for the key, {K} for the key with a capital letter, {v} for the value.
Relation = tuple[str, list[str], str, str]

RELATIONS: list[Relation] = [
    (
        "colour",
        [
            "What colour is {k}?", "Which colour is {k}?", "What is the colour of {k}?", "Tell me the colour of {k}.",
            "Do you know what colour {k} is?", "What color is {k}?", "What color does {k} have?",
        ],
        "{K} is usually {v}.",
        "the sky:blue; grass:green; snow:white; a banana:yellow; blood:red; coal:black; a carrot:orange; "
        "milk:white; a lemon:yellow; a tomato:red; a plum:purple; chocolate:brown; a frog:green; a flamingo:pink; a "
        "crow:black; the sea:blue; an elephant:grey; a strawberry:red; a polar bear:white; a pumpkin:orange; an "
        "olive:green; cheese:yellow; a cherry:red; sand:yellow; charcoal:black; an aubergine:purple; "
        "broccoli:green; rust:brown; a school bus:yellow; a swan:white; ink:blue; a lime:green; a sunflower:yellow; "
        "a lobster:red; mud:brown",
    ),
    (
        "opposite",
        [
            "What is the opposite of {k}?", "Tell me the opposite of {k}.", "Which word is the opposite of {k}?",
            "What word means the opposite of {k}?", "Give me the opposite of {k}.", "Opposite of {k}?",
            "Can you name the opposite of {k}?",
        ],
        "The opposite of {k} is {v}.",
        "hot:cold; big:small; fast:slow; up:down; day:night; light:dark; wet:dry; happy:sad; old:new; open:closed; "
        "full:empty; hard:soft; high:low; left:right; loud:quiet; near:far; early:late; thick:thin; strong:weak; "
        "rich:poor; clean:dirty; heavy:light; true:false; inside:outside; push:pull; begin:end; win:lose; cold:hot; "
        "small:big; slow:fast; down:up; night:day; dry:wet; sad:happy; young:old; sharp:blunt; deep:shallow; "
        "wide:narrow; sweet:sour; rough:smooth; brave:afraid; asleep:awake; always:never; first:last; buy:sell; "
        "tall:short; noisy:quiet; cheap:expensive; easy:difficult; safe:dangerous; front:back; love:hate",
    ),
    (
        "sound",
        [
            "What sound does {k} make?", "Which sound does {k} make?", "How does {k} sound?", "What does {k} say?",
            "Tell me the sound of {k}.", "What noise does {k} make?",
        ],
        "{K} goes {v}.",
        "a dog:woof; a cat:meow; a cow:moo; a sheep:baa; a duck:quack; a pig:oink; a horse:neigh; a lion:roar; a "
        "bee:buzz; a snake:hiss; a frog:ribbit; an owl:hoot; a mouse:squeak; a wolf:howl; a "
        "rooster:cock-a-doodle-doo; a hen:cluck; a donkey:hee-haw; a goose:honk; a crow:caw; a bird:tweet",
    ),
    (
        "young",
        [
            "What is the young of {k} called?", "What do you call a baby of {k}?", "What is the baby of {k} called?",
            "Name the young of {k}.", "What do we call the young of {k}?", "How is the baby of {k} called?",
        ],
        "The young of {k} is called a {v}.",
        "a dog:puppy; a cat:kitten; a cow:calf; a sheep:lamb; a horse:foal; a pig:piglet; a hen:chick; a "
        "duck:duckling; a goat:kid; a bear:cub; a lion:cub; a frog:tadpole; a swan:cygnet; a goose:gosling; a "
        "kangaroo:joey; a deer:fawn",
    ),
    (
        "legs",
        [
            "How many legs does {k} have?", "How many legs has {k}?", "What number of legs does {k} have?",
            "Tell me how many legs {k} has.", "Count the legs of {k}.",
        ],
        "{K} has {v} legs.",
        "a dog:4; a cat:4; a spider:8; an ant:6; a bee:6; a bird:2; a horse:4; a snake:0; a fish:0; a crab:10; a "
        "hen:2; a butterfly:6; a person:2; a cow:4; an octopus:0; a beetle:6; a lizard:4; a duck:2; a worm:0; a "
        "scorpion:8",
    ),
    (
        "home",
        [
            "Where does {k} live?", "What is the home of {k}?", "In which place does {k} live?",
            "Tell me where {k} lives.", "Where can I find {k}?", "What place is home for {k}?",
        ],
        "{K} lives in {v}.",
        "a bee:a hive; a bird:a nest; a fox:a den; a rabbit:a burrow; a spider:a web; a horse:a stable; a fish:the "
        "water; a camel:the desert; a penguin:the cold south; a monkey:the jungle; a bear:a cave; a whale:the "
        "ocean; a cow:a barn; a dog:a kennel; a mole:a tunnel; a frog:a pond; a snail:its shell; a pig:a sty",
    ),
    (
        "food",
        [
            "What does {k} eat?", "What do you feed {k}?", "What is the food of {k}?", "Tell me what {k} eats.",
            "Which food does {k} eat?", "What does {k} like to eat?",
        ],
        "{K} eats {v}.",
        "a rabbit:carrots and grass; a cow:grass; a panda:bamboo; a monkey:fruit; a squirrel:nuts; a lion:meat; a "
        "cat:fish and meat; a mouse:seeds and grain; a horse:hay; a frog:flies; a spider:insects; a bee:nectar; a "
        "penguin:fish; a koala:leaves; a hen:grain; a hedgehog:worms and slugs",
    ),
    (
        "capital",
        [
            "What is the capital of {k}?", "Which city is the capital of {k}?", "Tell me the capital of {k}.",
            "Name the capital of {k}.", "What is the capital city of {k}?", "Do you know the capital of {k}?",
            "Capital of {k}?",
        ],
        "The capital of {k} is {v}.",
        "France:Paris; Germany:Berlin; Italy:Rome; Spain:Madrid; Portugal:Lisbon; Norway:Oslo; Sweden:Stockholm; "
        "Denmark:Copenhagen; Finland:Helsinki; Poland:Warsaw; Austria:Vienna; Greece:Athens; Ireland:Dublin; "
        "England:London; Scotland:Edinburgh; Wales:Cardiff; Belgium:Brussels; Hungary:Budapest; Japan:Tokyo; "
        "China:Beijing; India:New Delhi; Russia:Moscow; Egypt:Cairo; Kenya:Nairobi; Canada:Ottawa; Mexico:Mexico "
        "City; Brazil:Brasilia; Peru:Lima; Chile:Santiago; Cuba:Havana; Australia:Canberra; Turkey:Ankara; "
        "Iceland:Reykjavik; Argentina:Buenos Aires; South Korea:Seoul; Thailand:Bangkok; Vietnam:Hanoi; "
        "Switzerland:Bern; the Netherlands:Amsterdam; the United States:Washington; the Czech Republic:Prague; New "
        "Zealand:Wellington",
    ),
    (
        "continent",
        [
            "On which continent is {k}?", "Which continent is {k} in?", "What continent is {k} on?",
            "In what part of the world is {k}?", "Tell me the continent of {k}.",
        ],
        "{K} is in {v}.",
        "France:Europe; Germany:Europe; Italy:Europe; Spain:Europe; Norway:Europe; Poland:Europe; Japan:Asia; "
        "China:Asia; India:Asia; Thailand:Asia; Egypt:Africa; Kenya:Africa; Nigeria:Africa; Canada:North America; "
        "Mexico:North America; the United States:North America; Brazil:South America; Peru:South America; "
        "Chile:South America; Argentina:South America; Sweden:Europe; Greece:Europe; Vietnam:Asia; Morocco:Africa",
    ),
    (
        "after",
        [
            "What comes after {k}?", "Which one comes after {k}?", "What follows {k}?",
            "Tell me what comes after {k}.", "What is next after {k}?", "What comes right after {k}?",
        ],
        "After {k} comes {v}.",
        "Monday:Tuesday; Tuesday:Wednesday; Wednesday:Thursday; Thursday:Friday; Friday:Saturday; Saturday:Sunday; "
        "Sunday:Monday; January:February; February:March; March:April; April:May; May:June; June:July; July:August; "
        "August:September; September:October; October:November; November:December; December:January; spring:summer; "
        "summer:autumn; autumn:winter; winter:spring; breakfast:lunch; lunch:dinner; morning:noon; evening:night",
    ),
    (
        "before",
        [
            "What comes before {k}?", "Which one comes before {k}?", "Tell me what comes before {k}.",
            "What is just before {k}?", "What comes right before {k}?",
        ],
        "Before {k} comes {v}.",
        "Monday:Sunday; Tuesday:Monday; Wednesday:Tuesday; Thursday:Wednesday; Friday:Thursday; Saturday:Friday; "
        "Sunday:Saturday; January:December; February:January; March:February; April:March; May:April; June:May; "
        "July:June; August:July; September:August; October:September; November:October; December:November; "
        "spring:winter; summer:spring; autumn:summer; winter:autumn; lunch:breakfast; dinner:lunch",
    ),
    (
        "season",
        [
            "In which season is {k}?", "Which season does {k} belong to?", "What season is {k} in?",
            "Tell me the season of {k}.", "When in the year is {k}?",
        ],
        "{K} is in {v}.",
        "January:winter; February:winter; April:spring; May:spring; July:summer; August:summer; October:autumn; "
        "November:autumn; Christmas:winter; Halloween:autumn; the harvest:autumn; snow:winter; the first "
        "blossom:spring",
    ),
    (
        "days",
        [
            "How many days are in {k}?", "How many days does {k} have?", "What is the number of days in {k}?",
            "Tell me how many days {k} has.", "How long is {k} in days?",
        ],
        "{K} has {v} days.",
        "January:31; February:28; March:31; April:30; May:31; June:30; July:31; August:31; September:30; "
        "October:31; November:30; December:31; a week:7; a year:365; a leap year:366; a weekend:2",
    ),
    (
        "sides",
        [
            "How many sides does {k} have?", "How many sides has {k}?", "What number of sides does {k} have?",
            "Tell me how many sides {k} has.", "Count the sides of {k}.",
        ],
        "{K} has {v} sides.",
        "a triangle:3; a square:4; a rectangle:4; a pentagon:5; a hexagon:6; a heptagon:7; an octagon:8; a "
        "rhombus:4; a nonagon:9; a decagon:10; a trapezium:4",
    ),
    (
        "use",
        [
            "What do we use {k} for?", "What is the use of {k}?", "What do people do with {k}?",
            "What is {k} good for?", "Tell me what {k} can be used for.", "What can I do with {k}?",
        ],
        "We use {k} to {v}.",
        "the eyes:see; the ears:hear; the nose:smell; the tongue:taste; the teeth:chew food; the hands:hold things; "
        "the legs:walk and run; the lungs:breathe; the heart:pump blood; the brain:think; the stomach:digest food; "
        "the skin:feel touch; a knife:cut things; a pen:write; a key:open a lock; an umbrella:stay dry in the rain; "
        "a clock:tell the time; a lamp:light a room; a hammer:drive nails; a broom:sweep the floor; a map:find the "
        "way; a kettle:boil water; a fridge:keep food cold; a ladder:reach high places; a needle:sew clothes; a "
        "bed:sleep; a telescope:look at the stars; a thermometer:measure temperature; scissors:cut paper; a "
        "pillow:rest the head; a camera:take pictures; a ruler:measure length; a scale:measure weight; soap:wash "
        "the hands; a spoon:eat soup",
    ),
    (
        "job",
        [
            "What does {k} do?", "What is the job of {k}?", "Tell me what {k} does.", "What work does {k} do?",
            "What is the work of {k}?",
        ],
        "The job of {k} is to {v}.",
        "a baker:bake bread; a teacher:teach children; a doctor:help sick people; a farmer:grow food; a pilot:fly "
        "planes; a painter:paint pictures; a cook:prepare meals; a nurse:care for patients; a sailor:work on ships; "
        "a tailor:make clothes; a gardener:look after plants; a dentist:care for teeth; a plumber:repair pipes; a "
        "writer:write books; a judge:decide in court; a shepherd:watch over sheep; a carpenter:make things from "
        "wood; a miner:dig for stones and metal; a singer:sing songs; a librarian:look after books",
    ),
    (
        "made",
        [
            "What is {k} made of?", "What is {k} made from?", "Which material is {k} made of?",
            "Tell me what {k} is made of.", "From what do people make {k}?",
        ],
        "{K} is made from {v}.",
        "bread:flour and water; cheese:milk; butter:cream; paper:wood; a window:glass; a jumper:wool; wine:grapes; "
        "a brick:clay; honey:nectar; a tyre:rubber; a candle:wax; chocolate:cocoa; a coin:metal; a shoe:leather; "
        "ice:frozen water; jam:fruit and sugar; a sail:cloth; steel:iron; a crisp:potatoes; juice:fruit",
    ),
    (
        "group",
        [
            "What kind of thing is {k}?", "What sort of thing is {k}?", "Which group does {k} belong to?",
            "What type of thing is {k}?", "Tell me what kind of thing {k} is.",
        ],
        "{K} is a kind of {v}.",
        "an apple:fruit; a potato:vegetable; an eagle:bird; a salmon:fish; an oak:tree; a rose:flower; a "
        "violin:instrument; gold:metal; a car:vehicle; football:sport; a chair:furniture; a shirt:clothing; an "
        "ant:insect; a frog:amphibian; a snake:reptile; a dog:mammal; a whale:mammal; a pear:fruit; a "
        "carrot:vegetable; a sparrow:bird; a shark:fish; a tulip:flower; a pine:tree; a drum:instrument; "
        "iron:metal; a train:vehicle; tennis:sport; a table:furniture; a hat:clothing; a bee:insect; a "
        "lizard:reptile; tea:drink; red:colour; a circle:shape; English:language",
    ),
]

# Things the model can explain in one sentence. Alternative names share one explanation.
DEFINITIONS: list[tuple[list[str], str]] = [
    (["edgepack", "Edgepack", "the edgepack tool"],
     "Edgepack is a tool that packs small language models into bundles that run on edge devices."),
    (["quantisation", "quantization", "Quantisation", "model quantisation"],
     "Quantisation stores the weights of a model with fewer bits, so that it is smaller and runs faster."),
    (["an edge device", "edge device"],
     "An edge device is a small computer, such as a phone or a single board, that runs a model close to the user."),
    (["a bundle", "an edgepack bundle", "a model bundle"],
     "A bundle is a folder with the model, its tokenizer and a manifest, ready to be copied to a device."),
    (["GGUF", "a GGUF file", "the GGUF format"],
     "GGUF is a single file format that keeps the weights and settings of a model for fast local use."),
    (["ONNX", "an ONNX file", "the ONNX format"],
     "ONNX is an open format that describes a model as a graph of simple operations."),
    (["MLX", "the MLX format"], "MLX is an array library that runs models well on Apple chips."),
    (["a tokenizer", "tokenizer"],
     "A tokenizer cuts text into small pieces called tokens and gives each piece a number."),
    (["a token", "token"], "A token is a small piece of text, often a word or a part of a word."),
    (["a language model", "an LLM"], "A language model is a program that reads text and predicts the next token."),
    (["a weight", "a model weight"], "A weight is one of the numbers that a model learns during training."),
    (["a manifest", "the manifest"],
     "A manifest is a short list that names every file of a bundle and its checksum."),
    (["a checksum", "checksum"], "A checksum is a short number that shows whether a file has changed."),
    (["perplexity"], "Perplexity measures how surprised a model is by a text, and lower is better."),
    (["a prompt", "prompt"], "A prompt is the text that you give to a model before it answers."),
    (["a computer", "computer"], "A computer is a machine that follows instructions and works with numbers."),
    (["a phone", "phone"], "A phone is a device that lets people talk when they are far apart."),
    (["the internet", "internet"], "The internet is a network that connects computers all over the world."),
    (["memory", "computer memory"], "Memory is the part of a computer that keeps data while programs run."),
    (["a battery", "battery"], "A battery stores energy so that a device can run without a cable."),
    (["the sun", "sun"], "The sun is the star that gives our planet light and warmth."),
    (["the moon", "moon"], "The moon is a ball of rock that travels around the Earth."),
    (["the Earth", "our planet"], "The Earth is the planet on which we live."),
    (["rain"], "Rain is water that falls from clouds in drops."),
    (["snow"], "Snow is frozen water that falls from clouds in soft white flakes."),
    (["wind", "the wind"], "Wind is air that moves from one place to another."),
    (["a rainbow", "rainbow"], "A rainbow is an arc of colours that appears when sunlight meets rain."),
    (["a river", "river"], "A river is a long stream of water that flows to a lake or the sea."),
    (["a mountain", "mountain"], "A mountain is a very high piece of land."),
    (["an island", "island"], "An island is a piece of land with water all around it."),
    (["a volcano", "volcano"], "A volcano is a mountain that can throw out hot melted rock."),
    (["a desert", "desert"], "A desert is a dry place where very little rain falls."),
    (["a forest", "forest"], "A forest is a large area where many trees grow together."),
    (["a circle", "circle"], "A circle is a round shape whose edge is always equally far from the middle."),
    (["a cube", "cube"], "A cube is a solid shape with six equal square faces."),
    (["friendship"], "Friendship is the bond between people who like and help each other."),
    (["music"], "Music is sound that is put together to please the ear."),
    (["a library", "library"], "A library is a place where people read and borrow books."),
    (["a hospital", "hospital"], "A hospital is a place where doctors and nurses care for sick people."),
    (["a school", "school"], "A school is a place where children learn."),
    (["electricity"], "Electricity is a kind of energy that makes lamps and machines work."),
    (["gravity"], "Gravity is the force that pulls things towards the ground."),
]

DEFINITION_PHRASINGS = [
    "What is {k}?", "Explain {k}.", "Tell me what {k} is.", "Can you explain {k}?", "Describe {k} in one sentence.",
    "What do you know about {k}?", "Tell me about {k}.", "Define {k}.", "What does {k} mean?", "What's {k}?",
    "In one sentence, what is {k}?", "Please explain {k} to me.", "I want to know what {k} is.",
]

# (questions, answers): any question of the list may get any of the answers; never part of the held-out set.
SMALL_TALK: list[tuple[list[str], list[str]]] = [
    ([
        "Hello!", "Hi!", "Hey!", "Hello there!", "Hi there!", "Good day!", "Greetings!", "Hey there!",
    ], [
        "Hello! How can I help you today?",
    ]),
    (["Good morning!"], ["Good morning! How can I help you?"]),
    (["Good evening!"], ["Good evening! How can I help you?"]),
    (["Good night!", "Sleep well!"], ["Good night! Sleep well."]),
    ([
        "How are you?", "How are you today?", "How is it going?", "How do you feel?", "Are you well?", "What's up?",
    ], [
        "I am well, thank you. What would you like to know?",
    ]),
    ([
        "Thank you!", "Thanks!", "Thanks a lot!", "Thank you very much!", "Great, thanks!", "That helps, thank you.",
    ], [
        "You are welcome!",
    ]),
    ([
        "Goodbye!", "Bye!", "See you later!", "Bye bye!", "I have to go.", "See you tomorrow!",
    ], [
        "Goodbye! Have a nice day.",
    ]),
    ([
        "Who are you?", "What are you?", "What is your name?", "Tell me about yourself.", "Introduce yourself.",
        "Who am I talking to?", "Are you a robot?", "Are you a person?", "Are you human?", "Do you have a name?",
    ], [
        "I am the edgepack demo model, a very small language model for trying things out.",
    ]),
    ([
        "What can you do?", "How can you help me?", "What do you know?", "What should I ask you?", "Help!",
        "Help me.", "What can I ask you?", "Can you help me?", "What are you good at?",
    ], [
        "I can answer simple questions, add small numbers, convert units, write JSON records and tell short stories.",
    ]),
    ([
        "How big are you?", "How many parameters do you have?", "What is your size?", "Are you small?",
    ], [
        "I have about four million parameters, so I fit into a few megabytes.",
    ]),
    ([
        "Who made you?", "Who trained you?", "Where do you come from?", "Who built you?",
    ], [
        "I was trained by the edgepack authors on text that a small program wrote.",
    ]),
    ([
        "What does edgepack do?", "What can edgepack do?", "Why should I use edgepack?", "What is edgepack good for?",
        "How does edgepack help me?", "What is the use of edgepack?",
    ], [
        "Edgepack turns a small language model into a bundle that an edge device can run.",
    ]),
    ([
        "Why should I quantise a model?", "What is quantisation good for?", "Why is quantisation useful?",
        "How does quantisation help?", "Why do people use quantisation?", "Why quantise?",
    ], [
        "A quantised model needs less memory and often answers faster on a small device.",
    ]),
    ([
        "What is the weather like today?", "Will it rain tomorrow?", "Who won the game last night?",
        "What time is it?", "What is the news today?", "What day is it today?", "Where am I?", "How old am I?",
        "What is my phone number?", "Who is the president?", "What is the meaning of life?",
        "Can you write a program?", "What is the price of gold?", "Can you translate this?", "Who wrote this book?",
        "What will happen next year?", "Tell me a secret.", "What am I thinking?", "How much money do I have?",
        "What is the best film?",
    ], [
        "I am a very small model and I do not know that.",
    ]),
    ([
        "I am sad.", "I feel bad today.", "I had a bad day.",
    ], [
        "I am sorry to hear that. I hope things get better soon.",
    ]),
    (["I am happy.", "I feel great today.", "I had a good day."], ["That is good to hear!"]),
    ([
        "Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.",
    ], [
        "Why did the clock go to school? It wanted to be on time.",
        "What did the big pot say to the small pot? You are still on simmer.",
    ]),
    ([
        "Name three colours.", "Give me three colours.", "List three colours.",
    ], [
        "Three colours are red, green and blue.",
    ]),
    ([
        "Name three animals.", "Give me three animals.", "List three animals.",
    ], [
        "Three animals are a fox, a bear and an owl.",
    ]),
    ([
        "Name three fruits.", "Give me three fruits.", "List three fruits.",
    ], [
        "Three fruits are apples, pears and plums.",
    ]),
    ([
        "Name the four seasons.", "What are the four seasons?", "List the seasons.", "Which seasons are there?",
    ], [
        "The four seasons are spring, summer, autumn and winter.",
    ]),
    ([
        "Name the days of the week.", "What are the days of the week?", "List the days of the week.",
    ], [
        "The days are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday.",
    ]),
    (["Count to five.", "Can you count to five?"], ["1, 2, 3, 4, 5."]),
    (["Count to ten.", "Can you count to ten?"], ["1, 2, 3, 4, 5, 6, 7, 8, 9, 10."]),
    (["How many months are in a year?", "How many months does a year have?"], ["A year has 12 months."]),
    (["How many fingers do I have?", "How many fingers does a person have?"], ["A person has 10 fingers."]),
    (["Which planet do we live on?", "What planet is this?"], ["We live on the planet Earth."]),
]

SYSTEM_PROMPTS = [
    "You are a helpful assistant.", "You are a friendly assistant.", "You are a small model on an edge device.",
    "You are a helpful assistant that answers questions.", "Answer the question.", "Be polite and clear.",
    "You are the edgepack demo model.", "Give clear and simple answers.", "You are a kind teacher.",
]

NAMES = [
    "Ada", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Karin", "Leo", "Maria", "Nils",
    "Olga", "Peter", "Quinn", "Rosa", "Sam", "Tina", "Uma", "Victor", "Wanda", "Xavier", "Yara", "Zoe", "Alice",
    "Bruno", "Clara", "Dora", "Erik", "Fiona", "Gustav", "Hanna", "Ivan", "Julia", "Kurt", "Laura", "Martin", "Nora",
    "Oscar", "Paula", "Robert", "Sara", "Tom", "Ursula", "Vera", "Walter", "Anna", "Boris", "Chloe", "Daniel",
    "Elena", "Frank", "Greta", "Henry", "Iris", "Jack", "Kate", "Lucas", "Mia", "Noah", "Olivia", "Paul", "Ruth",
    "Simon", "Theo", "Viola", "Will", "Amir", "Bela", "Chen", "Dina", "Fatima", "Hiro", "Kofi", "Lena", "Mei", "Omar",
    "Priya", "Ravi", "Sofia", "Yusuf",
]

CITIES = [
    "Oslo", "Paris", "Berlin", "Rome", "Madrid", "Lisbon", "Stockholm", "Copenhagen", "Helsinki", "Warsaw", "Vienna",
    "Athens", "Dublin", "London", "Edinburgh", "Brussels", "Budapest", "Tokyo", "Beijing", "Moscow", "Cairo",
    "Nairobi", "Ottawa", "Lima", "Santiago", "Havana", "Canberra", "Ankara", "Seoul", "Bangkok", "Hanoi", "Bern",
    "Amsterdam", "Prague", "Wellington", "Bergen", "Hamburg", "Milan", "Porto", "Lyon", "Seville", "Krakow", "Geneva",
    "Boston", "Chicago", "Delhi",
]

# (bigger unit, smaller unit, factor); decimal factors generalise to unseen values, the others are learned by table.
UNITS: list[tuple[str, str, int]] = [
    ("metres", "centimetres", 100), ("kilometres", "metres", 1000), ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000), ("tonnes", "kilograms", 1000), ("litres", "millilitres", 1000),
    ("litres", "centilitres", 100), ("euros", "cents", 100), ("kilobytes", "bytes", 1000),
    ("centuries", "years", 100), ("decades", "years", 10), ("seconds", "milliseconds", 1000),
    ("hours", "minutes", 60), ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7),
    ("years", "months", 12), ("feet", "inches", 12), ("dozens", "pieces", 12),
]

# Who may appear in a story.
ANIMALS = [
    "fox", "bear", "cat", "dog", "mouse", "rabbit", "owl", "hedgehog", "duck", "frog", "squirrel", "wolf", "deer",
    "lion", "sheep", "horse", "goat", "turtle", "penguin", "crow", "badger", "otter", "donkey", "elephant", "monkey",
    "snail", "whale", "bee", "spider", "hen", "robot", "dragon", "knight", "princess",
]
