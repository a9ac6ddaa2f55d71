"The laws of every path, for every member of the family"
from family import MEMBERS, laws

globals().update(laws(*MEMBERS, short=MEMBERS[:-1]))
