"""C-STORE (PS3.4 B) over one association, and C-FIND to read back."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from typing import Any

from comit.errors import MissingExtra, Stopped
from comit.send.address import Address, Credentials
from comit.send.outbox import Entry
from comit.send.peer import Answer, Busy

FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve, FIND
PENDING = {0xFF00, 0xFF01}
STORED = {0x0000, 0xB000, 0xB006, 0xB007, 0x0111}  # with warnings; the last: it is there already
SECONDS = 60.0


class Dimse:
    """A Storage SCP. Each object is proposed in its own transfer syntax, and never transcoded."""

    def __init__(
        self, address: Address, credentials: Credentials, entries: Iterable[Entry]
    ) -> None:
        """Raises MissingExtra where pynetdicom is not installed."""
        try:
            from pynetdicom import AE
        except ImportError as error:
            raise MissingExtra("sending by DIMSE", "dimse") from error
        logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # it quotes data sets
        self._address, self._ae = address, AE(credentials.calling_aet or "COMIT")
        self._tls = (credentials.context(), address.host) if address.tls else None
        self._ae.acse_timeout = self._ae.dimse_timeout = self._ae.network_timeout = SECONDS
        self._ae.connection_timeout = SECONDS
        for kind, syntax in sorted({(e.sop_class_uid, e.transfer_syntax_uid) for e in entries}):
            self._ae.add_requested_context(kind, syntax)
        self._ae.add_requested_context(FIND)
        self._association: Any = None

    def send(self, entry: Entry, content: bytes) -> Answer:
        """Stores one instance."""
        from pydicom import dcmread

        association = self._associated()
        with warnings.catch_warnings():  # pydicom's quote header values, which name patients
            warnings.simplefilter("ignore")
            try:
                status = association.send_c_store(dcmread(BytesIO(content))).get("Status")
            except ValueError:
                return Answer(False, "no presentation context")
            except Exception as error:  # its text may hold header values
                self.close()
                raise Busy(type(error).__name__) from None
        if status is None:
            self.close()
            raise Busy("no answer")
        if 0xA700 <= status <= 0xA7FF:  # out of resources
            raise Busy(f"{status:#06x}")
        return Answer(status in STORED, f"{status:#06x}")

    def there(self, entry: Entry) -> bool | None:
        """Whether C-FIND finds the instance; None where the destination does not offer it."""
        from pydicom.dataset import Dataset

        association = self._associated()
        if not any(c.abstract_syntax == FIND for c in association.accepted_contexts):
            return None
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID = entry.study_instance_uid
        query.SeriesInstanceUID = entry.series_instance_uid
        query.SOPInstanceUID = entry.sop_instance_uid
        found = False
        try:
            for answer, item in association.send_c_find(query, FIND):
                status = answer.get("Status")
                if status is None:
                    self.close()
                    raise Busy("no answer")
                if status in PENDING:
                    uid = item.get("SOPInstanceUID") if item is not None else None
                    found |= uid == entry.sop_instance_uid
                elif status != 0:
                    return None
        except Busy:
            raise
        except Exception as error:  # its text may hold header values
            self.close()
            raise Busy(type(error).__name__) from None
        return found

    def close(self) -> None:
        """Releases the association."""
        if self._association is not None:
            with suppress(Exception):  # the other side may be gone
                if self._association.is_established:
                    self._association.release()
                else:
                    self._association.abort()
            self._association = None

    def _associated(self) -> Any:
        """The association, made anew where the other side has ended it."""
        if self._association is not None and self._association.is_established:
            return self._association
        self.close()
        host, port, aet = self._address.host, self._address.port, self._address.aet
        try:
            made = self._ae.associate(host, port, ae_title=aet, tls_args=self._tls)
        except Exception as error:
            raise Busy(type(error).__name__) from None
        if made.is_established:
            self._association = made
            return made
        if made.is_rejected and getattr(made.acceptor.primitive, "result", None) == 1:
            raise Stopped(
                f"{self._address} rejects the association for good; check the AE titles (comit's "
                f"is {self._ae.ae_title}, COMIT_SEND_CALLING_AET changes it) and run the same "
                "command to resume"
            )
        raise Busy("association refused" if made.is_rejected else "no association")
