-- Way back of 0011_create_dead_letter_functions. Takes ACCESS EXCLUSIVE locks; what the objects held is gone.

drop function purge_dead_letters;
drop function edit_dead_letter;
drop function redrive_dead_letters;
