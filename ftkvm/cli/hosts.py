"""What the rows of ``ftkvm host list`` (``GET /v1/hosts``) say."""

from ftkvm.ports import Json


def host_trouble(row: Json) -> str:
    """Why a host is of no use now; empty when its agent answers, names no error and has its datastore."""
    if not row["answers"]:
        return "it does not answer"
    if row.get("error"):
        return str(row["error"]["text"])
    return "" if row.get("datastore") == "ok" else f"datastore: {row.get('datastore')}"
