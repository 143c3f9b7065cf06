-- Way back of 0008_create_scopes. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop type packhorse.resting;
drop table packhorse.claim_marks;
drop table packhorse.scopes;
