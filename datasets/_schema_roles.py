r"""The roles of the columns of a log and of the tables beside it."""

#: The roles of one column, and what it holds.
SINGLE = {
    'user': 'id',
    'item': 'id',
    'time': 'time',
    'label': 'flag',
    'weight': 'number',
    'conversion': 'flag',
    'click_time': 'time',
    'settled': 'time',
    'query': 'terms',
    'domain': 'name',
}
#: The roles of any number of columns, what each holds, and what a message calls it.
SEVERAL = {
    'behaviors': ('flag', 'behavior'),
    'contexts': ('name', 'context'),
    'features': ('number', 'feature'),
    'user_attributes': ('name', 'user attribute'),
    'item_attributes': ('name', 'item attribute'),
    'user_texts': ('name', 'user text'),
    'item_texts': ('name', 'item text'),
}
SIDE_ROLES = {
    'attributes': ('name', 'attribute'),
    'texts': ('name', 'text'),
    'modalities': ('vector', 'modality'),
}
ACTION_ROLES = {'user': 'id', 'item': 'id', 'time': 'time', 'action': 'name'}
FORMAT = ('separator', 'names', 'encoding')
