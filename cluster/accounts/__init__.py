"""Keys and usage: who may ask, and what it came to. SQLAlchemy is imported at the first call, not here."""

from cluster.accounts.keys import Key, Keys
from cluster.accounts.store import StoreAway
from cluster.accounts.usage import Counts, Slot, Usage

__all__ = ["Counts", "Key", "Keys", "Slot", "StoreAway", "Usage"]
